"""Evaluation under retrievers that training never saw: who answers, what is measured, what is
significant.
"""
