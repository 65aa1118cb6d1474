"""The one place where Ray meets the estimator."""
