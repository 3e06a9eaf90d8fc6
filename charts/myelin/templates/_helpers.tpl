{{/* Labels of every object of the chart. */}}
{{- define "myelin.labels" -}}
{{ include "myelin.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What finds the controller's pods: nothing that a new version of the chart changes. */}}
{{- define "myelin.selector" -}}
app.kubernetes.io/name: myelin
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{/* Name of objects outside of namespaces: a cluster may have several controllers. */}}
{{- define "myelin.clusterName" -}}
myelin-{{ .Release.Namespace }}
{{- end }}

{{- define "myelin.account" -}}
{{- .Values.serviceAccount.name | default (ternary "myelin" "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The managed namespaces, as a JSON list in order: an order alone is no change. */}}
{{- define "myelin.namespaces" -}}
{{- .Values.namespaces | default (list .Release.Namespace) | sortAlpha | toJson }}
{{- end }}

{{- define "myelin.inboxUrl" -}}
{{- .Values.inboxUrl | default (printf "http://myelin.%s.svc:8090" .Release.Namespace) }}
{{- end }}

{{/* The controller's image, by digest. */}}
{{- define "myelin.image" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository: expected where the controller's image lies, host[:port]/path, got nothing; see docs/how-to/kubernetes.md" }}
{{- end }}
{{- if not .Values.image.digest }}
{{- fail "image.digest: expected sha256:<64 hex>, got nothing; a tag will not do, it can be moved to another image" }}
{{- end }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- end }}

{{/* The image that BuildKit's client is copied out of, by digest; empty for none. */}}
{{- define "myelin.buildkitImage" -}}
{{- with .Values.buildkit.image }}
{{- if ne (not .repository) (not .digest) }}
{{- fail "buildkit.image: expected repository and digest (sha256:<64 hex>), or neither, got one of them" }}
{{- end }}
{{- if .repository }}{{ printf "%s@%s" .repository .digest }}{{ end }}
{{- end }}
{{- end }}

{{/* Pod Security `restricted` admits a pod and a container with these. */}}
{{- define "myelin.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "myelin.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Peer: the controller's pods, seen from any namespace. */}}
{{- define "myelin.controllerPeer" -}}
namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace }}}}
podSelector:
  matchLabels:
    {{- include "myelin.selector" . | nindent 4 }}
{{- end }}

{{/* Egress rule: names are resolved. */}}
{{- define "myelin.dnsEgress" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}

{{/* Egress rule: the controller's inbox, where results, reports and samples go. */}}
{{- define "myelin.inboxEgress" -}}
- to:
    - {{- include "myelin.controllerPeer" . | nindent 6 }}
  ports: [{protocol: TCP, port: 8090}]
{{- end }}

{{/* What values ask for and the schema cannot judge. */}}
{{- define "myelin.check" -}}
{{- if and (gt (int .Values.replicas) 1) .Values.state.claim.enabled }}
{{- fail (printf "replicas: expected 1 with state.claim.enabled, got %d; a claim is written by one pod, and without one every replica has a folder of its own" (int .Values.replicas)) }}
{{- end }}
{{- if .Values.project.create }}
{{- $given := dict "project.name" .Values.project.name "project.repository.url" .Values.project.repository.url "project.registry.repository" .Values.project.registry.repository "project.keys.secretName" .Values.project.keys.secretName "project.trust.signers" (or .Values.project.trust.signers .Values.project.trust.unsafeUnsignedCommits) }}
{{- $missing := list }}
{{- range $key, $value := $given }}
{{- if not $value }}{{ $missing = append $missing $key }}{{ end }}
{{- end }}
{{- if $missing }}
{{- fail (printf "%s: expected values because project.create is true, got nothing; see docs/how-to/kubernetes.md" (join ", " $missing)) }}
{{- end }}
{{- $managed := include "myelin.namespaces" . | fromJsonArray }}
{{- if and .Values.project.namespace (not (has .Values.project.namespace $managed)) }}
{{- fail (printf "project.namespace: expected one of the managed namespaces (%s), got %s; add it to `namespaces`" (join ", " $managed) .Values.project.namespace) }}
{{- end }}
{{- end }}
{{- end }}
