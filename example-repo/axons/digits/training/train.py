"""Train one network for `--budget` epochs and report its accuracy on the validation part."""

import argparse
import os

import joblib
import numpy as np
from myelin import metric
from sklearn.neural_network import MLPClassifier

parser = argparse.ArgumentParser()
parser.add_argument("--config_id", default="")
parser.add_argument("--budget", type=float, default=18, help="epochs")
parser.add_argument("--learning_rate", type=float, default=0.003)
parser.add_argument("--units", type=int, default=48)
parser.add_argument("--activation", default="relu")
args = parser.parse_args()

data = np.load(os.environ["DATA_PATH"] + "digits.npz")
model = MLPClassifier((args.units,), activation=args.activation, learning_rate_init=args.learning_rate, random_state=7)
classes = np.arange(10)
for _epoch in range(int(args.budget)):
    model.partial_fit(data["train_x"], data["train_y"], classes=classes)

accuracy = model.score(data["valid_x"], data["valid_y"])
print(f"accuracy {accuracy:.4f} after {int(args.budget)} epochs")
joblib.dump(model, os.environ["MODEL_PATH"] + "model.joblib")  # the winner's file is what gets deployed
metric.publish_result(accuracy, "accuracy", {"training_loss": float(model.loss_)})
