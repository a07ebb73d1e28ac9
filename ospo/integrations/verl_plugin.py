"""Importing this module in verl registers the estimator ``ospo_to_go``."""

from ospo.integrations.verl import register

register()
