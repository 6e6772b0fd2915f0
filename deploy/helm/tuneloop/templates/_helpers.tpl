{{- define "tuneloop.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of one process: call with (dict "root" $ "process" "gateway"). */}}
{{- define "tuneloop.selector" -}}
app.kubernetes.io/name: tuneloop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .process }}
{{- end -}}

{{- define "tuneloop.labels" -}}
{{ include "tuneloop.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "tuneloop.metadata" -}}
name: {{ include "tuneloop.name" .root }}-{{ .process }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "tuneloop.labels" . | nindent 2 }}
{{- end -}}

{{- define "tuneloop.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- $values := index .root.Values .process -}}
{{ .root.Values.image.repository }}-{{ .process }}:{{ $tag }}{{ with $values.accelerator }}-{{ . }}{{ end }}
{{- end -}}

{{/* What every pod of ours begins with. */}}
{{- define "tuneloop.pod" -}}
{{- $values := index .root.Values .process -}}
serviceAccountName: {{ include "tuneloop.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# The time to be taken out of DNS, to end what runs, and to write down what is to be kept.
terminationGracePeriodSeconds: {{ add (include "tuneloop.preStopSeconds" .) $values.drainSeconds 15 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tuneloop.preStopSeconds" -}}
{{- if eq .process "learner" }}0{{ else }}10{{ end -}}
{{- end -}}

{{- define "tuneloop.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "tuneloop.selector" . | nindent 8 }}
{{- end -}}

{{- define "tuneloop.container" -}}
{{- $values := index .root.Values .process -}}
name: {{ .process }}
image: {{ include "tuneloop.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{ include "tuneloop.restricted" . | nindent 2 }}
{{- if ne .process "learner" }}
lifecycle:
  # Callers resolve the name of the headless service: first it goes from there, then we stop.
  preStop: {exec: {command: [sleep, {{ include "tuneloop.preStopSeconds" . | quote }}]}}
{{- end }}
resources:
  {{- $resources := deepCopy $values.resources }}
  {{- if $values.gpus }}
  {{- $limits := get $resources "limits" | default dict }}
  {{- $_ := set $limits "nvidia.com/gpu" $values.gpus }}
  {{- $_ := set $resources "limits" $limits }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{- define "tuneloop.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Probes of a gRPC service: Kubernetes' own, or, as that has no TLS, the image's command. */}}
{{- define "tuneloop.grpcProbes" -}}
{{- $probe := printf "grpc: {port: %v}" .port -}}
{{- if .root.Values.tls.grpcSecret -}}
{{- $probe = printf "exec: {command: [python, -m, tuneloop.rpc.probe, %s]}" .process -}}
{{- end -}}
startupProbe:
  {{ $probe }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 240
readinessProbe:
  {{ $probe }}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  {{ $probe }}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{- define "tuneloop.natsUrl" -}}
{{- if .Values.nats.enabled -}}
{{- $scheme := ternary "tls" "nats" (not (empty .Values.tls.natsSecret)) -}}
{{- $name := include "tuneloop.name" . -}}
{{- $urls := list -}}
{{- range $n := until (int .Values.nats.replicas) -}}
{{- $urls = append $urls (printf "%s://%s-nats-%d.%s-nats.%s.svc:4222" $scheme $name $n $name $.Release.Namespace) -}}
{{- end -}}
{{ join "," $urls }}
{{- else -}}
{{ required "nats.url: needed where nats.enabled is false" .Values.nats.url }}
{{- end -}}
{{- end -}}

{{- define "tuneloop.natsEnv" -}}
{{- $prefix := printf "TUNELOOP_%s" (upper .process) -}}
- {name: {{ $prefix }}_NATS_URL, value: {{ include "tuneloop.natsUrl" .root | quote }}}
- {name: {{ $prefix }}_NATS_USER, value: {{ .process }}}
- {name: {{ $prefix }}_NATS_PASSWORD_FILE, value: /etc/tuneloop/nats/password}
- {name: {{ $prefix }}_NATS_REPLICAS, value: {{ .root.Values.nats.replicas | quote }}}
{{- if .root.Values.tls.natsSecret }}
- {name: {{ $prefix }}_NATS_TLS_CA_FILE, value: /etc/tuneloop/nats-tls/ca.crt}
- {name: {{ $prefix }}_NATS_TLS_CERT_FILE, value: /etc/tuneloop/nats-tls/tls.crt}
- {name: {{ $prefix }}_NATS_TLS_KEY_FILE, value: /etc/tuneloop/nats-tls/tls.key}
{{- end }}
{{- if .root.Values.tls.grpcSecret }}
- {name: {{ $prefix }}_GRPC_TLS_CERT_FILE, value: /etc/tuneloop/grpc-tls/tls.crt}
- {name: {{ $prefix }}_GRPC_TLS_KEY_FILE, value: /etc/tuneloop/grpc-tls/tls.key}
- {name: {{ $prefix }}_GRPC_TLS_CA_FILE, value: /etc/tuneloop/grpc-tls/ca.crt}
{{- else if not .root.Values.tls.grpcPlaintext }}
{{- fail "tls.grpcSecret: needed for gRPC between the pods, or set tls.grpcPlaintext: true where nobody else can reach them" }}
{{- else if ne .process "gateway" }}
- {name: {{ $prefix }}_GRPC_PLAINTEXT, value: "true"}
{{- end }}
- {name: {{ $prefix }}_POLICY, value: {{ .root.Values.policy | quote }}}
- {name: {{ $prefix }}_DRAIN_SECONDS, value: {{ (index .root.Values .process).drainSeconds | quote }}}
{{- end -}}

{{- define "tuneloop.weightsEnv" -}}
{{- $prefix := printf "TUNELOOP_%s" (upper .process) -}}
- {name: {{ $prefix }}_WEIGHTS_URI, value: {{ required "weights.uri: where versions are kept, such as s3://bucket/tuneloop" .root.Values.weights.uri | quote }}}
- {name: {{ $prefix }}_VERIFY_KEY_FILE, value: /etc/tuneloop/manifest/manifest_public.pem}
{{- with .root.Values.weights.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .root.Values.weights.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .root.Values.weights.secret }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}}
{{- end }}
{{- end -}}

{{- define "tuneloop.settings" -}}
{{- range $name, $value := (index .root.Values .process).settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{/* Volumes and mounts that all four have. */}}
{{- define "tuneloop.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: nats-password, mountPath: /etc/tuneloop/nats, readOnly: true}
{{- if .root.Values.tls.natsSecret }}
- {name: nats-tls, mountPath: /etc/tuneloop/nats-tls, readOnly: true}
{{- end }}
{{- if .root.Values.tls.grpcSecret }}
- {name: grpc-tls, mountPath: /etc/tuneloop/grpc-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "tuneloop.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 2Gi}}
- name: nats-password
  secret:
    secretName: {{ .root.Values.secrets.nats }}
    defaultMode: 0440
    items: [{key: {{ .process }}, path: password}]
{{- with .root.Values.tls.natsSecret }}
- {name: nats-tls, secret: {secretName: {{ . }}, defaultMode: 0440}}
{{- end }}
{{- with .root.Values.tls.grpcSecret }}
- {name: grpc-tls, secret: {secretName: {{ . }}-{{ $.process }}, defaultMode: 0440}}
{{- end }}
{{- end -}}

{{/* The same of the three that load models: (dict … "private" true) for the signing key. */}}
{{- define "tuneloop.modelMounts" -}}
- {name: cache, mountPath: /var/cache/tuneloop}
- {name: models, mountPath: /models, readOnly: true}
- {name: manifest, mountPath: /etc/tuneloop/manifest, readOnly: true}
{{- end -}}

{{- define "tuneloop.modelVolumes" -}}
- {name: cache, emptyDir: {sizeLimit: {{ (index .root.Values .process).cache }} }}
- name: models
  {{- if .root.Values.model.volume }}
  {{- toYaml .root.Values.model.volume | nindent 2 }}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: manifest
  secret:
    secretName: {{ .root.Values.secrets.manifest }}
    defaultMode: 0440
    items:
      - {key: manifest_public.pem, path: manifest_public.pem}
      {{- if .private }}
      - {key: manifest_private.pem, path: manifest_private.pem}
      {{- end }}
{{- end -}}

{{/* Fetches the models named in "models" into the folder of the pod. */}}
{{- define "tuneloop.pull" -}}
{{- if .root.Values.model.pull }}
initContainers:
  - name: models
    image: {{ include "tuneloop.image" . }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [tuneloop, models, pull, {{ join ", " .models }}, --cache-dir, /]
    securityContext: {{ include "tuneloop.restricted" . | nindent 6 }}
    resources: {{ toYaml (omit (index .root.Values .process).resources "gpus") | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: cache, mountPath: /var/cache/tuneloop}
      - {name: models, mountPath: /models}
{{- end }}
{{- end -}}

{{- define "tuneloop.scraped" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
{{- end -}}
