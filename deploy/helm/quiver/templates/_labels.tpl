{{- define "quiver.selector" -}}
app.kubernetes.io/name: quiver
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "quiver.labels" -}}
{{ include "quiver.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
