"""What supervises the processes of this machine: MLflow, Prefect, the worker, DVC's commands."""
