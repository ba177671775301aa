{{/* Names, labels and what several objects have in common. */}}

{{- define "keyfleet.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for the longest suffix. */}}
{{- define "keyfleet.fullname" -}}
{{- $name := include "keyfleet.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "keyfleet.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* The labels by which pods are found; they never change. Takes {root, component}. */}}
{{- define "keyfleet.selector" -}}
app.kubernetes.io/name: {{ include "keyfleet.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The labels of an object. Takes {root, component}. */}}
{{- define "keyfleet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: keyfleet
{{ include "keyfleet.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels of a pod: without versions, so that a chart alone replaces none. Takes {root, component}. */}}
{{- define "keyfleet.podLabels" -}}
app.kubernetes.io/part-of: keyfleet
{{ include "keyfleet.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The head of an object's metadata. Takes {root, component, name, annotations}. */}}
{{- define "keyfleet.metadata" -}}
name: {{ .name }}
namespace: {{ include "keyfleet.namespace" .root }}
labels:
  {{- include "keyfleet.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Takes {root, image}. */}}
{{- define "keyfleet.image" -}}
{{- $registry := .root.Values.global.imageRegistry | default .image.registry -}}
{{- $name := printf "%s/%s" $registry .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "keyfleet.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets | uniq }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The name of the ServiceAccount of the gateway or the coordinator. Takes {root, component}. */}}
{{- define "keyfleet.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-%s" (include "keyfleet.fullname" .root) .component) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Where pods should not be together. Takes {root, component}. */}}
{{- define "keyfleet.spread" -}}
{{- $soft := list
  (dict "maxSkew" 1 "topologyKey" "topology.kubernetes.io/zone" "whenUnsatisfiable" "ScheduleAnyway")
  (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- $labels := include "keyfleet.selector" . | fromYaml -}}
topologySpreadConstraints:
{{- range (index .root.Values .component).topologySpreadConstraints | default $soft }}
- {{ toYaml (merge (dict "labelSelector" (dict "matchLabels" $labels) "matchLabelKeys" (list "pod-template-hash")) .) | nindent 2 | trim }}
{{- end }}
{{- end -}}

{{/* What a pod of the gateway or the coordinator says about where it may run. Takes {root, component}. */}}
{{- define "keyfleet.placement" -}}
{{- $of := index .root.Values .component -}}
{{ include "keyfleet.spread" . }}
{{- with $of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* An optional kind must be known to the cluster, unless nobody can be asked. Takes {root, api, value}. */}}
{{- define "keyfleet.requireAPI" -}}
{{- include "keyfleet.validate" .root -}}
{{- if not (or .root.Values.metrics.disableAPICheck (.root.Capabilities.APIVersions.Has .api)) -}}
{{- fail (printf "%s needs %s, which this cluster does not know: install its CRDs, or set metrics.disableAPICheck=true where no cluster is asked (helm template, GitOps)" .value .api) -}}
{{- end -}}
{{- end -}}
