"""What MLflow runs to load a saved model: its "models from code", so that nothing is pickled."""

from mlflow.models import set_model

from softrepa_pipeline.serving.model import PromptsToImages

set_model(PromptsToImages())
