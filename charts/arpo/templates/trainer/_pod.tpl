{{/* A Ray pod: (list . name-of-container head-or-workers-values resources). */}}
{{- define "arpo.rayPod" -}}
{{- $root := index . 0 -}}
{{- $place := index . 2 -}}
metadata:
  labels:
    {{- include "arpo.labels" (list $root "trainer") | nindent 4 }}
    arpo.dev/role: {{ index . 1 }}
spec:
  {{- include "arpo.pod" (list $root (include "arpo.trainerName" $root)) | nindent 2 }}
  {{- include "arpo.placement" $place | nindent 2 }}
  {{- if and (eq (index . 1) "ray-worker") (not (has "ReadWriteMany" $root.Values.checkpoints.accessModes)) }}
  # One node may write to the volume, so everybody is there.
  affinity:
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "arpo.selector" (list $root "trainer") | nindent 14 }}
              arpo.dev/role: ray-head
  {{- end }}
  # More than trainer.grace_s: what was learned last is still saved.
  terminationGracePeriodSeconds: {{ add (int (dig "trainer" "grace_s" 25 (include "arpo.config" $root | fromYaml))) 35 }}
  securityContext: {{- include "arpo.podSecurity" (dict "type" "RuntimeDefault") | nindent 4 }}
  containers:
    - name: {{ index . 1 }}
      image: {{ include "arpo.image" (list $root $root.Values.images.trainer) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      env:
        - {name: HOME, value: /home/arpo}
        - {name: HF_HOME, value: /var/lib/arpo/huggingface}
        {{- with $root.Values.rayJob.huggingFaceSecret }}
        - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}}
        {{- end }}
        {{- include "arpo.otlpEnv" $root | nindent 8 }}
        {{- with $root.Values.rayJob.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if eq (index . 1) "ray-head" }}
      ports:
        - {name: gcs-server, containerPort: 6379, protocol: TCP}
        - {name: dashboard, containerPort: 8265, protocol: TCP}
        - {name: client, containerPort: 10001, protocol: TCP}
      {{- end }}
      resources: {{- toYaml (index . 3) | nindent 8 }}
      securityContext: {{- include "arpo.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/arpo, readOnly: true}
        - {name: checkpoints, mountPath: /var/lib/arpo}
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/arpo}
        - {name: run, mountPath: /run/arpo}
  volumes:
    - name: config
      projected:
        defaultMode: 0440
        sources:
          - configMap:
              name: {{ include "arpo.configName" $root }}
          - secret:
              name: {{ include "arpo.tokensName" $root }}
              items: [{key: trainer.token, path: tokens/trainer.token}]
    - name: checkpoints
      persistentVolumeClaim: {claimName: {{ include "arpo.checkpointsName" $root }}}
    - {name: tmp, emptyDir: {}}
    - {name: home, emptyDir: {}}
    - {name: run, emptyDir: {}}
{{- end -}}
