"""Behaviour-regularized policy optimization from fixed data sets."""
