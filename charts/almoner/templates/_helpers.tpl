{{- define "almoner.labels" -}}
app.kubernetes.io/part-of: almoner
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "almoner.operatorImage" -}}
{{ .Values.image.registry }}{{ .Values.image.operator.repository }}:{{ .Values.image.operator.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "almoner.runnerImage" -}}
{{ .Values.image.registry }}{{ .Values.image.runner.repository }}:{{ .Values.image.runner.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "almoner.ledgerUrl" -}}
{{ ternary "http" "https" (eq .Values.tls.mode "none") }}://almoner-ledger.{{ .Release.Namespace }}.svc:8780
{{- end }}

{{- define "almoner.tlsSecret" -}}
{{- if eq .Values.tls.mode "existingSecret" }}
{{- required "tls.existingSecret: name the Secret with tls.crt, tls.key and ca.crt, or set another tls.mode" .Values.tls.existingSecret }}
{{- else }}
{{- if .Values.tls.existingSecret }}
{{- fail "tls.existingSecret: it is used with tls.mode=existingSecret alone: set that mode, or leave the name out" }}
{{- end }}
{{- print "almoner-ledger-tls" }}
{{- end }}
{{- end }}

{{- define "almoner.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "almoner.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Options by name, as --name=value; a list gives the option once for each item. */}}
{{- define "almoner.options" -}}
{{- range $name, $value := . }}
{{- if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%v" $name . | quote }}
{{- end }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%s" $name (ternary (int64 $value | toString) ($value | toString) (eq (float64 (int64 $value)) $value)) | quote }}
{{- else }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "almoner.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      app.kubernetes.io/name: {{ . }}
{{- end }}

{{- define "almoner.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "almoner.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
