"""Split the handwritten digits that come with scikit-learn into a training and a validation part."""

import os

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
wanted = [int(name) for name in os.environ.get("CLASSES", "0,1,2,3,4,5,6,7,8,9").split(",")]
chosen = np.isin(digits.target, wanted)
images, labels = digits.data[chosen] / 16.0, digits.target[chosen]
train_x, valid_x, train_y, valid_y = train_test_split(images, labels, test_size=0.25, random_state=7, stratify=labels)

# Myelin gives the folder, and keeps what is in it under its digest.
np.savez(os.environ["DATA_PATH"] + "digits.npz", train_x=train_x, train_y=train_y, valid_x=valid_x, valid_y=valid_y)
print(f"{len(train_y)} images to train on, {len(valid_y)} to validate, digits {wanted}")
