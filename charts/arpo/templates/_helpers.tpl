{{/* All names, labels and shared pieces. */}}

{{- define "arpo.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name)) -}}
{{- if gt (len $name) 47 -}}
{{- fail (printf "the name %q has %d characters, but KubeRay takes 47 at most; fix: a shorter release name, or --set fullnameOverride=NAME" $name (len $name)) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "arpo.rayJobName" -}}
{{- $name := printf "%s-%s" (include "arpo.fullname" .) .Values.rayJob.runId -}}
{{- if gt (len $name) 47 -}}
{{- fail (printf "the RayJob's name %q has %d characters, but KubeRay takes 47 at most; fix: a shorter rayJob.runId, or --set fullnameOverride=NAME" $name (len $name)) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "arpo.envName" -}}{{ include "arpo.fullname" . }}-env{{- end -}}
{{- define "arpo.tunnelName" -}}{{ include "arpo.fullname" . }}-tunnel{{- end -}}
{{- define "arpo.jaegerName" -}}{{ include "arpo.fullname" . }}-jaeger{{- end -}}
{{- define "arpo.trainerName" -}}{{ include "arpo.fullname" . }}-trainer{{- end -}}
{{- define "arpo.configName" -}}{{ include "arpo.fullname" . }}-config{{- end -}}
{{- define "arpo.tokensName" -}}{{ .Values.tokens.existingSecret | default (printf "%s-tokens" (include "arpo.fullname" .)) }}{{- end -}}
{{- define "arpo.checkpointsName" -}}{{ .Values.checkpoints.existingClaim | default (printf "%s-checkpoints" (include "arpo.fullname" .)) }}{{- end -}}
{{- define "arpo.hostKeyName" -}}{{ .Values.env.tunnel.existingHostKeySecret | default (printf "%s-tunnel-host-key" (include "arpo.fullname" .)) }}{{- end -}}
{{- define "arpo.authorizedKeysName" -}}{{ .Values.env.tunnel.existingAuthorizedKeysSecret | default (printf "%s-tunnel-authorized-keys" (include "arpo.fullname" .)) }}{{- end -}}

{{/* What pods are selected by: (list . component). */}}
{{- define "arpo.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object: (list . component). */}}
{{- define "arpo.labels" -}}
{{- $root := index . 0 -}}
{{ include "arpo.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* An image: (list . image). */}}
{{- define "arpo.image" -}}
{{- $image := index . 1 -}}
{{ printf "%s:%s" $image.repository ($image.tag | default (index . 0).Chart.AppVersion) }}
{{- end -}}

{{/* The start of a pod's spec: (list . service account). */}}
{{- define "arpo.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ index . 1 }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "arpo.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the env-server's pod with virtual machines has besides. */}}
{{- define "arpo.qemuOptions" -}}
image: /var/lib/arpo/images/{{ .image }}
memory: {{ .memory }}
cpus: {{ .cpus }}
accel: {{ .accel }}
network: {{ .network }}
folder: /var/lib/arpo/desktops
{{- end -}}

{{/* Pod Security Standard "restricted"; the argument is the seccomp profile. */}}
{{- define "arpo.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {{- toYaml . | nindent 2 }}
{{- end -}}

{{- define "arpo.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "arpo.otlpEndpoint" -}}
{{- if .Values.telemetry.otlp.endpoint -}}
{{- .Values.telemetry.otlp.endpoint -}}
{{- else if .Values.telemetry.jaeger.enabled -}}
http://{{ include "arpo.jaegerName" . }}:4318
{{- end -}}
{{- end -}}

{{- define "arpo.otlpEnv" -}}
{{- with include "arpo.otlpEndpoint" . }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.telemetry.otlp.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . }}, key: headers}}
{{- end }}
{{- end -}}

{{- define "arpo.envPort" -}}
{{- if eq .Values.env.mode "externalName" }}{{ int .Values.env.externalName.port }}{{ else }}18082{{ end -}}
{{- end -}}

{{/* The configuration of the run, as YAML. */}}
{{- define "arpo.config" -}}
{{- $config := dict -}}
{{- with .Values.preset -}}
{{- $file := printf "presets/%s.yaml" . -}}
{{- if not ($.Files.Get $file) -}}
{{- $known := list -}}
{{- range $path, $_ := $.Files.Glob "presets/*.yaml" }}{{ $known = append $known (trimSuffix ".yaml" (base $path)) }}{{ end -}}
{{- fail (printf "preset=%s is no file of configs/; fix: one of %s" . (join ", " (sortAlpha $known))) -}}
{{- end -}}
{{- $config = $.Files.Get $file | fromYaml -}}
{{- end -}}
{{- $ours := dict "run" (dict "dir" "/var/lib/arpo/runs") "launcher" (dict "kind" "ray") -}}
{{- $env := dict "url" (printf "http://%s:%s" (include "arpo.envName" .) (include "arpo.envPort" .)) "token_file" "/etc/arpo/tokens/trainer.token" -}}
{{- if eq .Values.env.mode "inCluster" -}}
{{- $_ := set $env "provider" .Values.env.provider -}}
{{- end -}}
{{- $_ := set $ours "env" $env -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.config) $ours) -}}
{{- end -}}

{{/* What cannot work together is refused here, with the fix; every template that renders something includes it. */}}
{{- define "arpo.validate" -}}
{{- $env := .Values.env -}}
{{- range $key := list "env.url" "env.token_file" "env.provider" "run.dir" "launcher.kind" -}}
{{- $parts := splitList "." $key -}}
{{- if hasKey (index $.Values.config (index $parts 0) | default dict) (index $parts 1) -}}
{{- fail (printf "config.%s is set by the chart; fix: leave it out, and see env.mode, env.provider and checkpoints" $key) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $env.mode "inCluster") (eq $env.provider "qemu") -}}
{{- if not $env.qemu.imageClaim -}}
{{- fail "env.provider=qemu has no disk to boot; fix: --set env.qemu.imageClaim=CLAIM with the guest's qcow2 on it (docs/kubernetes.md)" -}}
{{- end -}}
{{- if and (eq $env.qemu.accel "kvm") (not $env.kvm.enabled) -}}
{{- fail "env.provider=qemu needs a KVM device; fix: --set env.kvm.enabled=true with env.kvm.resource of your device plugin, or env.qemu.accel=tcg (emulation: many times slower)" -}}
{{- end -}}
{{- $options := dig "env" "provider_options" dict .Values.config -}}
{{- range $key := list "image" "memory" "cpus" "accel" "network" "folder" -}}
{{- if hasKey $options $key -}}
{{- fail (printf "config.env.provider_options.%s is set by the chart; fix: leave it out, and see env.qemu" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $env.externalName.host (ne $env.mode "externalName") -}}
{{- fail (printf "env.externalName.host is set, but env.mode is %s; fix: env.mode=externalName, or leave the host out" $env.mode) -}}
{{- end -}}
{{- if and (eq $env.mode "externalName") (not $env.externalName.host) -}}
{{- fail "env.mode=externalName names no host; fix: --set env.externalName.host=HOST" -}}
{{- end -}}
{{- if and (eq $env.mode "tunnel") (not $env.tunnel.authorizedKeys) (not $env.tunnel.existingAuthorizedKeysSecret) -}}
{{- fail "env.mode=tunnel, but nobody may connect; fix: --set-file 'env.tunnel.authorizedKeys[0]'=KEY.pub with the Mac's public key" -}}
{{- end -}}
{{- if and $env.tunnel.authorizedKeys $env.tunnel.existingAuthorizedKeysSecret -}}
{{- fail "env.tunnel.authorizedKeys and env.tunnel.existingAuthorizedKeysSecret are both set; fix: one of them" -}}
{{- end -}}
{{- if and .Values.telemetry.serviceMonitor.enabled (ne $env.mode "inCluster") -}}
{{- fail (printf "telemetry.serviceMonitor.enabled, but with env.mode=%s no env-server runs in the cluster; fix: env.mode=inCluster or telemetry.serviceMonitor.enabled=false" $env.mode) -}}
{{- end -}}
{{- if .Values.rayJob.enabled -}}
{{- $config := include "arpo.config" . | fromYaml -}}
{{- $wanted := int (dig "hardware" "gpus" 0 $config) -}}
{{- $workers := .Values.rayJob.workers -}}
{{- $given := mul (int $workers.replicas) (int $workers.gpus) -}}
{{- if ne (int $given) $wanted -}}
{{- fail (printf "the configuration has hardware.gpus=%d, but rayJob.workers has %d × %d GPUs; fix: rayJob.workers.replicas and .gpus that make %d, or config.hardware.gpus=%d" $wanted (int $workers.replicas) (int $workers.gpus) $wanted (int $given)) -}}
{{- end -}}
{{- if and .Values.kueue.queue (not .Values.rayJob.shutdownAfterJobFinishes) -}}
{{- fail "kueue.queue needs rayJob.shutdownAfterJobFinishes=true, or the quota is never given back" -}}
{{- end -}}
{{- if regexMatch "^([0-7]Gi|[0-9]{1,4}Mi)$" (dig "limits" "memory" "8Gi" .Values.rayJob.head.resources) -}}
{{- fail "rayJob.head.resources.limits.memory is below 8Gi, in which the driver and Ray's own services do not fit; fix: 8Gi or more" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "arpo.otlpPort" -}}
{{- $url := urlParse (include "arpo.otlpEndpoint" .) -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{- $port | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}
