"""The engine on Kubernetes: Jobs that bring their results back, Deployments behind Services."""

from controller.adapters.engine_cluster.engine import ClusterEngine
from controller.adapters.engine_cluster.kept import KeptJobs, KeptServers

__all__ = ["ClusterEngine", "KeptJobs", "KeptServers"]
