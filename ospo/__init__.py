"""OSPO: Owen-Shapley Policy Optimization (arXiv 2601.08403) for search and recommendation.

The package root imports nothing heavy, so that ``import ospo.credit`` stays light.
"""

__version__ = "0.1.0"
