{{- define "nodelet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "nodelet.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "nodelet.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "nodelet.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "nodelet.selector" -}}
app.kubernetes.io/name: {{ include "nodelet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "nodelet.labels" -}}
{{ include "nodelet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "nodelet.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "nodelet.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "nodelet.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* What the chart knows, with .Values.config laid over it. */ -}}
{{- define "nodelet.config" -}}
{{- $known := dict
  "apiVersion" "nodelet.dev/v1alpha1"
  "kind" "NodeletConfiguration"
  "dataDir" .Values.paths.data
  "runDir" .Values.paths.run
  "runtime" (dict "address" (printf "%s/containerd.sock" .Values.paths.containerd))
  "sources" (list (dict "directory" .Values.paths.manifests))
  "observability" (dict "listen" .Values.metrics.listen "logFormat" "json")
-}}
{{- toYaml (mergeOverwrite $known (deepCopy .Values.config)) }}
{{- end }}
