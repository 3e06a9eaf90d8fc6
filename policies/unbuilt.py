"""Which parts of Myelin a manifest asks for that are not built yet, so that nobody waits for them in vain.

Two kinds: what stops, because going on would do something else than was asked (it is refused where it is due), and what
is only noted, because it changes where or how something runs, not what it comes to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from policies.errors import DesiredStateError
from policies.terms.axon import KINDS, Artifact, Axon, Deployer, ImageBuild, Sensor, Task
from policies.terms.project import Project

ON_KUBERNETES = "only Kubernetes can do this"
CLUSTER_ONLY = "only the Project object of a cluster can say this"
ONLY_REPOSITORY = "only myelin.yaml in the repository can say this"
OUTSIDE = "only a pin from outside of the repository, in the trust file or the Project object, can say this"


def refuse(what: str) -> DesiredStateError:
    """The error that stops: names the part that is missing."""
    return DesiredStateError(f"{what} not built into Myelin yet", reason="NotBuilt")


def _missing(part: str) -> str:
    return f"{part} {'are' if part.endswith('s') else 'is'} not built into Myelin yet"


def check_gate(project: Project, on: str) -> None:
    """See that no rule stands in the way; a rule that cannot be asked yet denies.

    Args:
        project: The project.
        on: `promotion`, `run`, `image` or `rollback`.

    Raises:
        DesiredStateError: There is a rule.
    """
    if names := [policy.name for policy in project.spec.policies if policy.on == on]:
        raise refuse(f"spec.policies ({', '.join(names)}): no {on} without them, and rules in CEL are")


def check_base(base: str, *, engine: str) -> None:
    """See that images can be built on the base that is asked for, and run where they are to run.

    Args:
        base: What images are built on.
        engine: What they run on.

    Raises:
        DesiredStateError: They cannot.
    """
    if engine == "Kubernetes" and base == "host":
        text = "spec.builder.base: expected a base image by digest (host/path@sha256:…) in the Project or myelin.yaml, got none"
        raise DesiredStateError(text, reason="BaseMissing")


def check_artifact(artifact: Artifact) -> None:
    """See that an artifact is a folder of a Git repository, of this one or another.

    Raises:
        DesiredStateError: It lies elsewhere.
    """
    where = "s3" if artifact.s3 else "dvc" if artifact.dvc else ""
    if where:
        raise refuse(f"artifact {artifact.name}: {where}: sources from elsewhere are")


def check_build(build: ImageBuild) -> None:
    """See that a build needs nothing but its source.

    Raises:
        DesiredStateError: It asks for other files of the cluster than Secrets.
    """
    if any("secret" not in volume for volume in build.volumes):
        raise refuse("imageBuild.volumes: other files of the cluster than Secrets in a build are")


def check_deployer(deployer: Deployer) -> None:
    """See that a deployer can be deployed as it says.

    Raises:
        DesiredStateError: It asks for something that would be missing.
    """
    if deployer.promotion is not None and (more := sorted(deployer.promotion.model_fields_set - {"mode"})):
        raise refuse(f"deployer {deployer.name}: rules of `promotion` ({', '.join(more)}) are")
    for name, value in (
        ("autoscale", deployer.autoscale),
        ("securitySpec", deployer.security_spec),
        ("servers", deployer.servers),
        ("gateway", deployer.gateway),
        ("gatewayNamespace", deployer.gateway_namespace),
        ("volumes", deployer.volumes),
    ):
        if value:
            raise refuse(f"deployer {deployer.name}: `{name}` is")
    rules = deployer.rollout_spec
    if len(rules) > 1 or any(rule.match for rule in rules):
        raise refuse(f"deployer {deployer.name}: traffic by `match`, and several rolloutSpec entries, are")
    named = [item for rule in rules for item in (*rule.destinations, *((rule.shadow,) if rule.shadow else ()))]
    if any(item.destination_name for item in named):
        raise refuse(f"deployer {deployer.name}: destinationName in rolloutSpec is")
    if any(len(model.routing_strategy) > 1 for model in deployer.models):
        raise refuse(f"deployer {deployer.name}: several routingStrategy entries of one model are")


def check_task(task: Task) -> None:
    """See that a task is of a kind that runs.

    Raises:
        DesiredStateError: It is not.
    """
    if task.spark is not None:
        raise refuse("spark tasks are")
    if task.inputs or task.sidecars:
        raise refuse("`inputs` and `sidecars` of tasks are")
    if task.train is not None and task.train.tf_job_spec is not None:
        raise refuse("distributed training (tfJobSpec) is")


def why_never(sensor: Sensor) -> Iterator[tuple[str, str]]:
    """Triggers that cannot fire yet, and why a sensor as a whole cannot: (trigger's name or nothing, words)."""
    for trigger in sensor.triggers:
        if trigger.type in ("Calendar", "Release"):
            yield trigger.name or trigger.type, f"{trigger.type} triggers are not built into Myelin yet: this one never fires"
        if trigger.type == "Commit" and trigger.paths:
            yield trigger.name or trigger.type, "`paths` of Commit triggers are not built into Myelin yet: this one never fires"
    if sensor.conditions:
        yield "", "conditions of sensors are not built into Myelin yet: a sensor with some never fires"


def axon_notes(axon: Axon, *, engine: str, platforms: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """(why, key) for what has no effect where it runs and does no harm.

    Args:
        axon: The manifest.
        engine: What it runs on.
        platforms: Those that the project's images are asked for.
    """
    elsewhere = ON_KUBERNETES if engine != "Kubernetes" else ""
    spec = axon.spec
    for name, value in (
        ("spec.serviceAccountName", spec.service_account_name),
        ("spec.volumeClaimTemplate", spec.volume_claim_template),
        ("spec.volume", spec.volume),
    ):
        if value:
            yield _missing("claims and accounts of an axon's own"), name
    for task in spec.tasks:
        body = next(getattr(task, kind) for kind in KINDS if getattr(task, kind) is not None)
        for name, value in (("nodeSelector", body.node_selector), ("resources", body.resources)):
            if value and elsewhere:
                yield elsewhere, f"{name} of {task.name}"
            elif value and task.deploy is not None:
                yield _missing("resources and places of servers"), f"{name} of {task.name}"
        if len(set(platforms)) > 1 and body.image_build is not None and body.image_build.dockerfile is not None:
            yield _missing("Dockerfiles for several platforms"), f"spec.builder.platforms for {task.name}"
        if task.train is not None:
            if task.train.dataset or task.train.tolerance is not None:
                yield _missing("checks of a training's data and tolerance"), f"dataset and tolerance of {task.name}"
            if task.train.hp_tuning is not None and task.train.hp_tuning.max_retries is not None:
                yield _missing("retries of trials"), f"maxRetries of {task.name}"
    for sensor in spec.sensors:
        for trigger in sensor.triggers:
            if trigger.secret_from:
                yield _missing("signed events"), f"secretFrom of {sensor.name}, the inbox's token counts"
        for entry in (entry for group in sensor.tasks for entry in group):
            if entry.deployer is not None and entry.deployer.replicas != 1:
                yield _missing("several replicas"), f"replicas of {entry.deployer.name}, one of each runs"
            if entry.deployer is not None and not entry.deployer.explain_shadow:
                yield _missing("shadows without comparison"), f"explainShadow of {entry.deployer.name}"
            if entry.rollback is not None and entry.env:
                yield _missing("programs of rollbacks"), f"env of {sensor.name}"


def object_notes(project: Project) -> Iterator[tuple[str, str]]:
    """(why, key) for what the Project object of a cluster asks for in vain."""
    spec = project.spec
    for name in ("paths", "policies", "source"):
        if name in spec.model_fields_set:
            yield ONLY_REPOSITORY, f"spec.{name}"
    for name in sorted(spec.write_back.model_fields_set - {"forge"}):
        yield ONLY_REPOSITORY, f"spec.writeBack.{name}"
    for part, known in ((spec.builder, {"base", "buildkit"}), (spec.limits, {"max_concurrent_jobs"})):
        for name in sorted(part.model_fields_set - known):
            yield ONLY_REPOSITORY, f"{'spec.builder' if part is spec.builder else 'spec.limits'}.{name}"


def project_notes(project: Project, *, branch: str) -> Iterator[tuple[str, str]]:
    """(why, key) for what `myelin.yaml` asks for in vain."""
    spec = project.spec
    if "branch" in spec.model_fields_set and spec.branch != branch:
        yield _missing("a branch by spec.branch"), f"spec.branch {spec.branch}: followed is {branch}, by `myelin run --branch`"
    for name, value in (
        ("spec.trust.since", spec.trust.since),
        ("spec.trust.ancestors", not spec.trust.ancestors),
        ("spec.trust.sigstoreRoot", spec.trust.sigstore_root),
        ("spec.trust.unsafeUnsignedCommits", spec.trust.unsafe_unsigned_commits),
    ):
        if value:
            yield OUTSIDE, name
    for name, given in (("repository", spec.repository), ("registry", spec.registry), ("keys", spec.keys)):
        if given is not None:
            yield CLUSTER_ONLY, f"spec.{name}"
    for name, value in spec.limits.model_dump(by_alias=True).items():
        if value is not None and name != "maxConcurrentJobs":
            yield _missing("limits by the day"), f"spec.limits.{name}"
