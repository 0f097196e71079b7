"""Write the model as MLflow's own XGBoost flavour: `save_model.py MODEL_FILE FOLDER`."""

import sys

import mlflow.xgboost
import xgboost

booster = xgboost.Booster({"nthread": 1}, model_file=sys.argv[1])
mlflow.xgboost.save_model(booster, sys.argv[2], model_format="ubj")
