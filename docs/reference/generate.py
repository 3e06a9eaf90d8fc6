"""Writes what is made from the document types: `python docs/reference/generate.py`.

That is manifests.md, the reference of all documents, and the CustomResourceDefinitions of the chart. A field without a
meaning, and a meaning without a field, stop it.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from policies.crds import as_yaml, custom_resource_definition
from policies.parsing import KINDS
from policies.terms.axon import Free
from policies.terms.document_types import Duration, Instant, Name, Number, Quantity, Text
from policies.terms.project import GitUrl, MaybeSecretName, RegistryPath, SecretName

PAGE = Path(__file__).with_name("manifests.md")
CRDS = Path(__file__).parents[2] / "charts/myelin/crds"
WORDS: dict[Any, str] = {
    Duration: "duration",
    Instant: "instant",
    Name: "name",
    Number: "number",
    Quantity: "quantity",
    Text: "text",
    Any: "anything",
}
WORDS |= {Free: "free mapping", str: "text", int: "whole number", float: "number", bool: "`true` or `false`", type(None): ""}
WORDS |= {
    GitUrl: "Git URL",
    RegistryPath: "`host[:port]/path`",
    SecretName: "name of a Secret",
    MaybeSecretName: "name of a Secret",
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "entries at least", "pattern": "like"}
INTRODUCTION = """# Manifests

Written by `docs/reference/generate.py` from the document types in `policies/terms/`; do not edit. Keys that are not here
are refused. Durations are `30s`, `5m` or `36h`; a number may be quoted; the inside of a free mapping is Kubernetes',
Kubeflow's or Istio's. That a key is read does not say that anything acts on it yet: `docs/roadmap.md` names what is not
built. A project has one `myelin.yaml` at its root, and an axon is any file with that kind below `spec.paths`. Releases are
`releases/<axon>/<deployer>.yaml`, version records `versions/<axon>/<version>.yaml`.
"""
MEANINGS = """
*: api_version = shape of the document | kind = which document it is | metadata = its name | spec = its content | name = what it
  is called | labels = for people and tools | annotations = for people and tools | axon = the axon | deployer = the deployer |
  model_selection_strategy = which training's model is taken | destination_index = version by recency: 0 is the newest |
  destination_name = backend by name | task = one of `spec.tasks` | version = its id | reason = why | replicas = how many servers
ProjectSpec: branch = the branch that is the truth | paths = folders where axons are looked for; none: all | trust = whose
  commits are acted on | write_back = what the controller may commit, and how | builder = how images are built | policies =
  rules for all | source = what of the repository is read | limits = how much may run | repository = where it lies; counts
  only in the Project object of a cluster | registry = where images and artifacts are kept; counts only in the Project object
  of a cluster | keys = what is signed with; counts only in the Project object of a cluster || Repository: url = its address,
  without a password | secret_name = holds a login for it, with keys as in `docs/how-to/git-servers.md`; none: read without ||
  Registry: repository = where all of the project's images, artifacts and signatures lie | secret_name = of type
  `kubernetes.io/dockerconfigjson`, to push with; its key `ca.crt` may hold the registry's own authority |
  pull_secret_name = the same, to pull with: the pods' | unsafe_plain_http =
  without TLS || Keys: secret_name = holds `controller`, an OpenSSH private key, `image.pem` (or `cosign.key` with
  `cosign.password`, or `image.pkcs11`), and perhaps `controller.asc`, an OpenPGP one for commits, and
  `sigstore.seed` or `sigstore.json`, as `docs/how-to/verify-images.md` says || Trust: signers = who may change desired
  state | ancestors = all commits must be signed, not only the tip | since = commit to begin at |
  unsafe_unsigned_commits = act on unsigned commits | sigstore_root = trusted root of a Sigstore instance as JSON; none: the
  public good one || Signer: ssh = public key, `ssh-ed25519 AAAA…` | openpgp = armored OpenPGP certificate | identity = signer
  as the issuer knows them | issuer = who vouches | paths = what this signer may change; none: all | valid_from = first
  instant that counts | valid_until = first instant that does not count any more | revoked = why nothing that this key signs
  counts any more || WriteBack: mode = how versions come in; none: `pull-request` with a forge, else `commit` | rollbacks =
  how they go out for good; none: as `mode` | author = in whose name | forge = where pull requests are made | review = what
  they ask for | paths = folders that the controller may touch || Forge: type = kind of forge | url = its address; none: the
  repository's host | repository = `owner/name` there; none: the path of the repository's URL | token_from = where its token
  lies || TokenFrom: env = variable of the controller, `MYELIN_…` | file = file of the controller's machine | secret = key of
  a Secret, in the Project object of a cluster || SecretKey: key = in its data || Review: reviewers = user names on the forge
  | approvals = people who must approve the very evidence before `myelin/review` says success | author_is_enough = whether the
  training commit's signer may be the only one || Source: submodules = read their content too | largest_file = larger files
  are refused before they are read || Author: email = address in commits || Builder: base =
  base image by digest, also `oci:/folder@sha256:…` on one machine, or `host` |
  base_signers = one of these must have signed it; none: its digest is enough | index = where wheels come from | require_hashes
  = refuse unlocked requirements | propose_locks = ask on the forge to keep what was chosen for them |
  allow_source_distributions = run their setup code | precompile = add a layer of compiled
  modules; none: to images that serve | platforms = `linux/amd64`, `linux/arm64`; none: the controller's own | stamp = write
  the commit and its time into the image | reproducibility = build again elsewhere and compare: never, now and then, or always,
  and then nothing that differs is promoted | buildkit = where a BuildKit listens that builds Dockerfiles | limits = of one build
  by Dockerfile | store = how much is kept that nothing uses || ImageSigner: key = public key, PEM | identity = signer as the
  issuer knows them | issuer = who vouches || BuildLimits: memory = most of it | disk = most of it | time = longest ||
  StoreLimits: keep_results = versions and results younger than this stay, used or not | keep_unused = what was used this lately
  stays, an hour at least | cache = most of the folder in front of a cluster's registry || Limits: runs_per_day = most runs in a
  day | retrains_per_day = most trainings in a day | accelerator_hours_per_day = most hours of accelerators in a day |
  max_concurrent_jobs = most jobs at a time || Policy: on =
  what it judges; kubectl wants it quoted, `"on"` | require = condition in CEL | message = what a refusal says
AxonMetadata: namespace = kept for earlier manifests || AxonSpec: service_account_name = account of its pods | parameters = for
  `{{workflow.parameters.NAME}}` | artifacts = source of images | volume_claim_template = claim of a shared volume | volume =
  shared volume | tasks = what can be run | sensors = when it is run | suspend = nothing new starts; what serves goes on ||
  NamedValue: value = its value || Artifact: path = where its root appears in `buildLocation` | git = another repository; none:
  this one | s3 = source in a bucket | dvc = data by digest || Git: repo = URL | revision = branch, tag or commit | verify =
  it must be signed by one of the project's signers: the tag, else the commit |
  ssh_private_key_secret = key to read it with || SecretKey: key = the key inside of it
Task: container = a program that leaves data | train = one that leaves a model | deploy = one that serves | spark = Spark
  application | inputs = earlier manifests' key, meaning unknown | sidecars = containers beside it || Body: image = a ready-made
  image | image_build = how its image is built | env = its environment | node_selector = labels of its nodes | resources =
  `requests` and `limits` as in Kubernetes | cache = use an earlier result of equal inputs again
EnvVar: value = may hold `{{workflow.parameters.NAME}}` | value_from = where it comes from || ImageBuild: repository_name = the
  image's name; none: the axon's | artifact = one of `spec.artifacts` | build_location = folder below the artifact's path |
  dockerfile = build by Dockerfile | s2i = build from source and `requirements.txt` | check_image_exists = do not build what
  exists | volumes = secrets for the build | volume_mounts = where they appear || Dockerfile: path = relative to `buildLocation` |
  network = its steps may reach the network, which is recorded
  || S2I: context_dir = source folder below `buildLocation` | builder_image = image that earlier builds used
TrainTask: loss_metric = decides which training is best | loss_metric_selector = which is better | metrics = others that it
  reports | hp_tuning = tune its parameters | tf_job_spec = distributed training | dataset = data to record by digest | seed =
  given as `SEED` | tolerance = how far a run again may be off || MetricDeclaration: type = its Prometheus type || Tuning:
  optimiser = how configurations are drawn | concurrency = most trials at a time | min_budget = smallest budget wanted |
  max_budget = budget of the last rung | num_iteration = number of brackets | params = the search space | eta = reduction factor:
  trials that enter a rung for each one kept | seed = of all draws; none: made of axon, task, space | budget_type = whether
  budgets are whole | trial_timeout = longest trial | straggler_factor = give up trials so many times slower than their rung |
  max_retries = for lost trials | max_failed_trials = stop when more failed | target_loss = stop when a trial at full budget
  reaches it | patience = stop after so many brackets without gain | max_duration = longest time of all trials | warm_start =
  learn from earlier runs
TuningParameter: name = also the argument `--<name>` | type = kind of dimension | numerical = range | categorical = values |
  condition = parameter -> its values for which this one is active || Numerical: lower = smallest | upper = largest |
  default_value = tried first | log = uniform in the logarithm | mean = centre of `Normal` | spread = standard deviation of
  `Normal` || Categorical: values = what to choose from | default_value = tried first
DeployTask: endpoint_type = protocol | endpoint_rest_type = how earlier proxies called it || SparkTask: spark_spec = the
  application || SparkSpec: properties = settings, one a line | properties_config_map = where they are instead |
  properties_config_map_key = under which key | class_ = main class | jars = libraries | application_file = program | args =
  arguments | deploy_mode = where the driver runs
Sensor: triggers = what it waits for; none: a new axon digest | conditions = gates after the triggers | tasks = groups in
  sequence, side by side within; flat: groups of one | parameters = values for this sensor | when = all triggers, or any |
  cooldown = least time between runs | max_per_day = most runs in 24 hours || Trigger: type = kind of circumstance | task = of
  `Lifecycle`: whose end | condition = `Succeeded` or `Failed`; of `Alert`: PromQL | for_ = how long it must hold | no_data =
  what missing data means | schedule = of `Calendar`: cron | timezone = of the schedule | catch_up = which missed instants count
  | paths = of `Commit`: folders | secret_from = of `Rest`: HMAC key | deployer = of `Release`: whose
Condition: type = kind of gate | condition = what must hold || SensorTask: resource_executor = run a container or spark task |
  trainer = run a train task | deployer = make and serve a version | rollback = take a version out of traffic | env = added to
  the task's
Deployer: rollout_spec = traffic over versions | models = what it serves | routes = public paths and graphs | volumes = of its
  pods | security_spec = who may call | servers = ports and hosts | gateway = Istio's gateway | gateway_namespace = its namespace
  | promotion = when shares change | autoscale = replicas by load | explain_shadow = compare the shadow's answers
RolloutRule: destinations = weights by recency | shadow = gets a copy of the traffic | match = requests it is for || Destination:
  weight = percent of the traffic || Model: routing_strategy = traffic over backends | backend_models = images that serve it ||
  RoutingStrategy: destinations = weights by backend || BackendModel: trainer = train task whose model it loads | deployer =
  deploy task whose image serves it
Route: path = public path | dag = what is called for it | timeout = deadline of all; none: 30 s || Node: model = one of the
  deployer's models | path = called on the model | dependencies = nodes whose answers it is given | include_input = also pass the
  caller's, as `INPUT` | full_path = URL of a model deployed elsewhere | health_path = where that says it is well |
  endpoint_rest_type = how it is called | timeout = deadline
Promotion: mode = instead of the project's | require = conditions in CEL | metric = compared with stable | margin = how much
  better | min_samples = fewest requests | confidence = of the comparison | soak = least time on probation | steps = shares over
  time | abort_on = PromQL that ends it || PromotionStep: share = percent of the traffic | for_ = how long || Autoscale:
  min_replicas = fewest | max_replicas = most | target_concurrency = requests at a time for each || Suspend: until = when it ends
  by itself
ReleaseSpec: traffic = shares, which sum to 100 | shadow = version that gets a copy | holds = versions not let in until a commit
  lifts it || Hold: since = from when on it counts || VersionSpec: commit = what it was made from | axon_digest = digest of what
  that asked for | event_set = names the events together | events = ids of the events behind it | run = the run that made it |
  backends = what serves | parameters = of the training | metrics = of the training | created_at = when | verdicts = policies'
  answers || BackendRecord: backend = its name in the model
"""  # Class: field = meaning | field = meaning; `*` is any class


def written() -> Iterator[str]:
    """The page, part by part."""
    yield INTRODUCTION
    known, used = meanings(), set()
    for kind, document in KINDS.items():
        yield f"\n## {kind}"
        for model, places in models(document).items():
            about = re.sub("^See .*", "What is asked for.", (model.__doc__ or "").splitlines()[0])
            yield f"\n### {model.__name__}\n\n{about}\n\nWhere: {', '.join(f'`{place}`' for place in places)}.\n"
            yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
            hints, said = get_type_hints(model, include_extras=True), docstrings(model)
            for name, field in model.model_fields.items():
                owner = next((item.__name__ for item in model.__mro__ if (item.__name__, name) in known), "*")
                used.add((owner, name))
                meaning = (said.get(name) if owner == "*" else "") or known.get((owner, name))
                if not meaning:
                    raise SystemExit(f"{model.__name__}.{name}: expected a meaning in {__file__}, got none")
                yield row(name, field, described(hints[name]), meaning)
    if unused := sorted(set(known) - used):
        raise SystemExit(f"{'.'.join(unused[0])}: expected a field for this meaning in {__file__}, there is none")


def definitions() -> Iterator[tuple[Path, str]]:
    """The chart's CustomResourceDefinitions: (file, text)."""
    for kind in KINDS:
        text = "# Written by docs/reference/generate.py from the document types in policies/terms/; do not edit.\n"
        yield CRDS / f"{kind.lower()}s.yaml", text + as_yaml(custom_resource_definition(kind))


def meanings() -> dict[tuple[str, str], str]:
    """(class, field) -> meaning."""
    text = re.sub(r"\n +", " ", MEANINGS.strip())
    parts = [line.partition(": ") for line in re.split(r"\n| \|\| ", text)]
    pairs = [(owner, *item.partition(" = ")[::2]) for owner, _, rest in parts for item in rest.split(" | ")]
    return {(owner, name): meaning for owner, name, meaning in pairs}


def models(document: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """Every type that a document is made of, with the places where it stands."""
    found: dict[type[BaseModel], list[str]] = {}
    waiting: list[tuple[Any, str]] = [(document, "")]
    for hint, place in waiting:
        if not (isinstance(hint, type) and issubclass(hint, BaseModel)):
            inner = f"{place}[]" if get_origin(hint) is tuple else place
            waiting += [(part, inner) for part in get_args(hint)]
            continue
        if hint not in found:
            hints = get_type_hints(hint, include_extras=True)
            waiting += [(hints[name], f"{place}.{key_of(name, field)}".strip(".")) for name, field in hint.model_fields.items()]
        found.setdefault(hint, []).append(place or "the document")
    return found


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> first line of the text below it in the source."""
    return dict(re.findall(r'^    (\w+): .*\n    """(.+?)\.?(?:"""|\n)', inspect.getsource(model), re.MULTILINE))


def key_of(name: str, field: FieldInfo) -> str:
    """How a field is called in YAML."""
    return field.serialization_alias or field.alias or name


def described(hint: Any) -> str:
    """A type in words."""
    if hint in WORDS:
        return WORDS[hint]
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    parts = [part for part in get_args(hint) if part not in (Ellipsis, type(None))]
    if get_origin(hint) is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if get_origin(hint) in (tuple, dict):
        return f"{'list of' if get_origin(hint) is tuple else 'mapping to'} {described(parts[-1])}"
    return " or ".join(dict.fromkeys(described(part) for part in parts))


def row(name: str, field: FieldInfo, kind: str, meaning: str) -> str:
    """One line of a table."""
    rules = [(text, getattr(rule, sign, None)) for rule in field.metadata for sign, text in BOUNDS.items()]
    kind = ", ".join([kind, *(f"{text} `{value}`" for text, value in rules if value is not None)])
    known = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
    meaning += "".join(f"; also `{item}`" for item in known if item != key_of(name, field))
    default = field.get_default(call_default_factory=True)
    shown = "none" if default is None else "see there" if isinstance(default, BaseModel) else ""
    shown = "**required**" if field.is_required() else shown or f"`{json.dumps(default)}`"
    return f"| `{key_of(name, field)}` | {kind} | {shown} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text("\n".join(written()) + "\n")
    CRDS.mkdir(parents=True, exist_ok=True)
    for file, text in definitions():
        file.write_text(text)
