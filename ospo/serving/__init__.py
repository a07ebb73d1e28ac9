"""The rewriter that users load and serve. ``rewriter`` is plain Python; ``pyfunc`` is the same as
an MLflow model.
"""
