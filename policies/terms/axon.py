"""kind: Axon, whole: what `axon-reference.md` and `extensions.md` know, with the old spellings turned into today's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from policies.terms.document_types import Document, Duration, Instant, Name, Number, Text, check_resources

Free = dict[str, Any]
"""A part whose inside belongs to somebody else: Kubernetes, Kubeflow or Istio."""

KINDS = ("container", "train", "deploy", "spark")


class NamedValue(Document):
    """A parameter of the axon."""

    name: str
    value: Text = ""


class EnvVar(Document):
    """One variable of a program's environment."""

    name: str
    value: Text = ""
    value_from: Free | None = None


class SecretKey(Document):
    """A key of a secret; never its content."""

    name: str
    key: str = ""


class Git(Document):
    """Source in another repository."""

    repo: str = ""
    revision: str = ""
    ssh_private_key_secret: SecretKey | None = None
    verify: bool = False
    """Whether it must be signed: the tag that `revision` names, else the commit."""


class Artifact(Document):
    """Source that images are built from."""

    name: str
    path: str = "/"
    git: Git | None = None
    s3: Free | None = None
    dvc: Free | None = None


class Dockerfile(Document):
    """A build by Dockerfile."""

    path: str
    network: bool = False
    """Whether its steps may reach the network, which is recorded."""


class S2I(Document):
    """A build from a source folder."""

    context_dir: str = ""
    builder_image: str = Field(
        default="",
        validation_alias=AliasChoices("builderImage", "buiderImage"),
        serialization_alias="builderImage",
    )


class ImageBuild(Document):
    """How a task's image is built."""

    repository_name: str = ""
    artifact: str
    build_location: str = ""
    dockerfile: Dockerfile | None = None
    s2i: S2I | None = Field(default=None, alias="s2i")
    check_image_exists: bool = False
    volumes: tuple[Free, ...] = ()
    volume_mounts: tuple[Free, ...] = ()


class Body(Document):
    """What all task kinds share."""

    image: str = ""
    image_build: ImageBuild | None = None
    env: tuple[EnvVar, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    resources: Free = Field(default_factory=dict)
    cache: bool = True

    @field_validator("resources")
    @classmethod
    def _quantities(cls, value: Free) -> Free:
        return check_resources(value)


class ContainerTask(Body):
    """A program that runs and leaves data."""


class MetricDeclaration(Document):
    """A metric that a training reports."""

    name: str
    type: str = "Gauge"


class Numerical(Document):
    """Range of a number; the earlier manifests quote their numbers."""

    lower: Number
    upper: Number
    default_value: Number | None = Field(
        default=None, validation_alias=AliasChoices("default_value", "defaultValue"), serialization_alias="default_value"
    )
    log: bool = False
    mean: Number | None = None
    spread: Number | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Numerical:
        if self.lower >= self.upper:
            raise ValueError(f"expected lower below upper, got {self.lower:g} and {self.upper:g}")
        if self.default_value is not None and not self.lower <= self.default_value <= self.upper:
            raise ValueError(f"expected default_value from {self.lower:g} to {self.upper:g}, got {self.default_value:g}")
        if self.log and self.lower <= 0:
            raise ValueError(f"expected lower above 0 with log, got {self.lower:g}")
        return self


class Categorical(Document):
    """A choice."""

    values: tuple[str | int | float | bool, ...] = Field(min_length=1)
    default_value: str | int | float | bool | None = Field(
        default=None, validation_alias=AliasChoices("default_value", "defaultValue"), serialization_alias="default_value"
    )

    @model_validator(mode="after")
    def _known(self) -> Categorical:
        if self.default_value is not None and self.default_value not in self.values:
            raise ValueError(f"expected default_value to be one of the values, got {self.default_value}")
        return self


class TuningParameter(Document):
    """One dimension of the search space."""

    name: str
    type: Literal["UniformFloat", "UniformInteger", "Normal", "Categorical", "Ordinal", "Constant"]
    numerical: Numerical | None = None
    categorical: Categorical | None = None
    condition: dict[str, tuple[Any, ...]] | None = None

    @model_validator(mode="after")
    def _complete(self) -> TuningParameter:
        part = "numerical" if self.type in ("UniformFloat", "UniformInteger", "Normal") else "categorical"
        if getattr(self, part) is None:
            raise ValueError(f"expected `{part}` with type {self.type}")
        return self


class Tuning(Document):
    """`hpTuning`."""

    optimiser: Literal["BOHB", "HyperBand", "RandomSearch"] = "BOHB"
    concurrency: int = Field(default=1, ge=1)
    min_budget: Number = Field(gt=0)
    max_budget: Number = Field(gt=0)
    num_iteration: int = Field(default=1, ge=1)
    params: tuple[TuningParameter, ...] = Field(min_length=1)
    eta: int = Field(default=3, ge=2)
    seed: int | None = Field(default=None, ge=0)
    budget_type: Literal["integer", "float"] = "float"
    trial_timeout: Duration | None = None
    straggler_factor: float | None = Field(default=None, gt=1)
    max_retries: int | None = Field(default=None, ge=0)
    max_failed_trials: int | None = Field(default=None, ge=0)
    target_loss: float | None = None
    patience: int | None = Field(default=None, ge=1)
    max_duration: Duration | None = None
    warm_start: Free | bool | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Tuning:
        if self.min_budget > self.max_budget:
            raise ValueError(f"expected minBudget of at most maxBudget, got {self.min_budget:g} and {self.max_budget:g}")
        return self


class TrainTask(Body):
    """A program that leaves a model."""

    loss_metric: str = ""
    loss_metric_selector: Literal["greater", "less"] = "less"
    metrics: tuple[MetricDeclaration, ...] = ()
    hp_tuning: Tuning | None = None
    tf_job_spec: Free | None = None
    dataset: tuple[str, ...] = ()
    seed: int | None = None
    tolerance: float | None = Field(default=None, ge=0)


class DeployTask(Body):
    """A program that serves a model."""

    endpoint_type: Literal["REST"] = "REST"
    endpoint_rest_type: str = "Multipart"


class SparkSpec(Document):
    """A Spark application."""

    properties: str = ""
    properties_config_map: str = ""
    properties_config_map_key: str = ""
    class_: str = Field(default="", alias="class")
    jars: tuple[str, ...] = ()
    application_file: str = ""
    args: tuple[Text, ...] = ()
    deploy_mode: str = "cluster"


class SparkTask(Body):
    """A Spark application; accepted, not acted on yet."""

    spark_spec: SparkSpec = SparkSpec()


class Task(Document):
    """One task: exactly one of container, train, deploy and spark."""

    name: Name
    container: ContainerTask | None = None
    train: TrainTask | None = None
    deploy: DeployTask | None = None
    spark: SparkTask | None = None
    OLD_KEYS: ClassVar[tuple[str, ...]] = ("env",)
    """Keys of older forms that are no fields of today."""
    inputs: Free | tuple[Any, ...] | None = None
    sidecars: tuple[Free, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _old_env(cls, value: Any) -> Any:
        """An older form put `env` beside the kind: it is read behind the kind's own, and goes before it."""
        if not isinstance(value, Mapping) or not isinstance(value.get("env", 0), list | None):
            return value
        rest = {key: item for key, item in value.items() if key != "env"}
        for kind in KINDS:
            if isinstance(body := rest.get(kind), Mapping):
                if not isinstance(own := body.get("env"), list | None):
                    return value
                return {**rest, kind: {**body, "env": [*(own or ()), *(value["env"] or ())]}}
        return rest

    @model_validator(mode="after")
    def _one_kind(self) -> Task:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected exactly one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
        return self


class Trigger(Document):
    """One rule on circumstances."""

    type: Literal["Lifecycle", "Rest", "Alert", "Calendar", "Commit", "Release"]
    name: str = ""
    task: str = ""
    condition: str = ""
    for_: Duration | None = Field(default=None, alias="for")
    no_data: Literal["pause", "fire"] = "pause"
    schedule: str = ""
    timezone: str = "UTC"
    catch_up: Literal["none", "last", "all"] = "last"
    paths: tuple[str, ...] = ()
    secret_from: Free | None = None
    deployer: str = ""


class Condition(Document):
    """A gate after the triggers."""

    name: str = ""
    type: str = "Metric"
    condition: str = ""
    task: str = ""


class TaskReference(Document):
    """A task by name."""

    task: str


class DeployerReference(Document):
    """A deployer by name."""

    deployer: str


class Destination(Document):
    """A weight for a version by recency, or for a backend by name."""

    destination_index: int | None = Field(default=None, ge=0)
    destination_name: str = ""
    weight: int | None = Field(default=None, ge=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def _old_index(cls, value: Any) -> Any:
        """The earliest form said `destination: 0`."""
        if isinstance(value, Mapping) and "destination" in value and "destinationIndex" not in value:
            rest = {key: item for key, item in value.items() if key != "destination"}
            return {**rest, "destinationIndex": value["destination"]}
        return value


class Shadow(Document):
    """Where traffic is mirrored to."""

    destination_index: int | None = Field(default=None, ge=0)
    destination_name: str = ""


class RolloutRule(Document):
    """Traffic over versions."""

    destinations: tuple[Destination, ...] = ()
    shadow: Shadow | None = Field(default=None, validation_alias=AliasChoices("shadow", "shadows"), serialization_alias="shadow")
    match: tuple[Free, ...] = Field(default=(), validation_alias=AliasChoices("match", "matches"), serialization_alias="match")

    @field_validator("match", mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return () if value is None or value == {} else value


class BackendModel(Document):
    """A trained model joined with the image that serves it."""

    name: Name
    trainer: str = ""
    deployer: str = ""
    model_selection_strategy: Literal["best"] | None = None


class RoutingStrategy(Document):
    """Traffic over backends of one model."""

    destinations: tuple[Destination, ...] = ()


class Model(Document):
    """A logical model, a node of the graph."""

    name: Name
    model_selection_strategy: Literal["best"] | None = None
    routing_strategy: tuple[RoutingStrategy, ...] = ()
    backend_models: tuple[BackendModel, ...] = ()


class Node(Document):
    """One call of a route."""

    model: str = ""
    path: str = "/predict"
    dependencies: tuple[str, ...] = ()
    include_input: bool = False
    dependency: str = Field(default="", exclude=True)
    """Legacy; says nothing."""
    full_path: str | None = None
    health_path: str | None = None
    endpoint_rest_type: str = ""
    timeout: Duration | None = None


class Route(Document):
    """A public route and the graph behind it."""

    path: str
    dag: tuple[Node, ...] = ()
    timeout: Duration | None = None


class PromotionStep(Document):
    """One share, and how long it is kept before the next."""

    share: int = Field(ge=0, le=100)
    for_: Duration = Field(default="0s", alias="for")


class Promotion(Document):
    """When a version gets more traffic, and when it loses it."""

    mode: str = ""
    require: tuple[str, ...] = ()
    metric: str = ""
    margin: Number = 0.0
    min_samples: int = Field(default=0, ge=0)
    confidence: Number = Field(default=0.95, gt=0, lt=1)
    soak: Duration = "0s"
    steps: tuple[PromotionStep, ...] = ()
    abort_on: tuple[str, ...] = ()

    @field_validator("steps", mode="before")
    @classmethod
    def _bare_shares(cls, value: Any) -> Any:
        """A bare number is a share that is kept for no time."""
        if isinstance(value, (list, tuple)):
            return [{"share": item} if isinstance(item, int) else item for item in value]
        return value


class Autoscale(Document):
    """Replicas by load."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_concurrency: Number = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Autoscale:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"expected minReplicas of at most maxReplicas, got {self.min_replicas} and {self.max_replicas}")
        return self


class Deployer(Document):
    """How versions are made and reached."""

    name: Name = "deployer"
    replicas: int = Field(default=1, ge=0)
    rollout_spec: tuple[RolloutRule, ...] = ()
    models: tuple[Model, ...] = ()
    routes: tuple[Route, ...] = ()
    volumes: tuple[Free, ...] = ()
    security_spec: tuple[Free, ...] = ()
    servers: tuple[Free, ...] = ()
    gateway: str = ""
    gateway_namespace: str = ""
    deployment_type: str = Field(default="", exclude=True)
    """Legacy; says nothing."""
    promotion: Promotion | None = None
    autoscale: Autoscale | None = None
    explain_shadow: bool = True


class SensorTask(Document):
    """What a sensor makes due."""

    resource_executor: TaskReference | None = None
    trainer: TaskReference | None = None
    deployer: Deployer | None = None
    rollback: DeployerReference | None = None
    env: tuple[EnvVar, ...] = ()

    @model_validator(mode="after")
    def _one(self) -> SensorTask:
        given = [self.resource_executor, self.trainer, self.deployer, self.rollback]
        if sum(item is not None for item in given) != 1:
            raise ValueError("expected exactly one of resourceExecutor, trainer, deployer and rollback")
        return self


class Sensor(Document):
    """Triggers, and the tasks that they make due: a sequence of groups that run side by side."""

    name: Name
    triggers: tuple[Trigger, ...] = ()
    conditions: tuple[Condition, ...] = ()
    tasks: tuple[tuple[SensorTask, ...], ...] = Field(min_length=1)
    parameters: tuple[NamedValue, ...] = ()
    when: Literal["all", "any"] = "all"
    cooldown: Duration = "0s"
    max_per_day: int | None = Field(default=None, ge=0)

    @field_validator("tasks", mode="before")
    @classmethod
    def _groups(cls, value: Any) -> Any:
        """A flat list is a sequence of groups of one."""
        if isinstance(value, (list, tuple)):
            return [item if isinstance(item, (list, tuple)) else [item] for item in value]
        return value


class Suspend(Document):
    """Nothing new starts."""

    reason: str
    until: Instant | None = None


class AxonMetadata(Document):
    """The axon's name and labels."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?$")
    namespace: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class AxonSpec(Document):
    """Tasks, sensors and what they share."""

    service_account_name: str = ""
    parameters: tuple[NamedValue, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    volume_claim_template: Free | None = None
    volume: Free | None = None
    tasks: tuple[Task, ...] = ()
    sensors: tuple[Sensor, ...] = ()
    suspend: Suspend | None = None


class Axon(Document):
    """kind: Axon."""

    api_version: Literal["myelin.io/v1alpha1", "myelinproj.io/v1alpha1"] = "myelin.io/v1alpha1"
    kind: Literal["Axon"] = "Axon"
    metadata: AxonMetadata
    spec: AxonSpec
