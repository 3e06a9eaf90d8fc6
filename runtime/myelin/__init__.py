"""What Myelin puts into a user's image: `metric`, `hpo` and `admin` for programs, the model server and the proxy."""

__project__ = "myelin"
__version__ = "0.1.0"
