"""What people and MLflow see."""
