{{/* The parts that pods of gateways and coordinators share. Takes {root, component}. */}}

{{- define "keyfleet.env" -}}
- name: CONFIG_PATH
  value: /etc/keyfleet/config/config.yaml
- name: RUST_LOG
  value: {{ .root.Values.logLevel | quote }}
{{- with (index .root.Values .component).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Folders, not single files (subPath): only those follow a change. */}}
{{- define "keyfleet.mounts" -}}
- name: config
  mountPath: /etc/keyfleet/config
  readOnly: true
{{- if include "keyfleet.secretFiles" .root | fromYaml }}
- name: secrets
  mountPath: {{ include "keyfleet.secretFolder" .root }}
  readOnly: true
{{- end }}
{{- with (index .root.Values .component).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "keyfleet.volumes" -}}
- name: config
  configMap:
    name: {{ include "keyfleet.fullname" .root }}
{{- with include "keyfleet.secretFiles" .root | fromYaml }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
    {{- range $file, $ref := . }}
    - secret:
        name: {{ $ref.name }}
        items:
        - key: {{ $ref.key }}
          path: {{ $file }}
    {{- end }}
{{- end }}
{{- with (index .root.Values .component).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
