"""Default places of what the project reads and writes, relative to the working directory."""

from pathlib import Path

PARAMS = Path("params.yaml")
# Data, made by `dvc repro`. Vectors lie beside prepared data: <data>/vectors/<name> belongs to
# <data>/prepared/<name>.
SAMPLE = Path("data/sample")
PREPARED = Path("data/prepared")
VECTORS = Path("data/vectors")
# Results: one folder per data set and step; pages and tables for people.
RUNS = Path("runs")
REPORTS = Path("reports")
EVALUATION_REPORT = REPORTS / "evaluation"
DEMO_REPORT = REPORTS / "demo.json"
# What is made again when it is missing.
COMPLETIONS_CACHE = Path(".cache/rollouts")
MODELS_CACHE = Path(".cache/models")
# HNSW graphs: no DVC output, as graphs built by several threads differ.
INDEX_CACHE = Path(".cache/index")
BENCHMARKS_CACHE = Path(".cache/benchmarks")
# MLflow's local store, and what `make up` notes about the servers that it started.
DATABASE = Path("mlflow.db")
ARTIFACTS = Path("mlartifacts")
SERVERS = Path(".run")
