{{/* The one configuration file: `config` of the values, and what the chart knows itself. */}}

{{/* What runs in this release, as words; empty: no. */}}
{{- define "keyfleet.hasNats" -}}
{{- if or .Values.nats.enabled .Values.nats.external.url (include "keyfleet.ref" (dict "root" . "ref" .Values.nats.external.urlSecret)) }}yes{{ end -}}
{{- end -}}
{{- define "keyfleet.hasRedis" -}}
{{- if or .Values.redis.enabled .Values.redis.external.url (include "keyfleet.ref" (dict "root" . "ref" .Values.redis.external.urlSecret)) }}yes{{ end -}}
{{- end -}}
{{- define "keyfleet.hasKeys" -}}
{{- if or .Values.config.groups (include "keyfleet.ref" (dict "root" . "ref" .Values.apiKeys)) }}yes{{ end -}}
{{- end -}}
{{- define "keyfleet.isSimulated" -}}
{{- if and .Values.simulator.enabled (not (include "keyfleet.hasKeys" .)) }}yes{{ end -}}
{{- end -}}

{{/* The name of the chart's own Secret. */}}
{{- define "keyfleet.ownSecret" -}}
{{- include "keyfleet.fullname" . -}}
{{- end -}}

{{/* The Secret that holds an entry, or nothing if none does. Takes {root, ref: {existingSecret, key}}. */}}
{{- define "keyfleet.ref" -}}
{{- $ref := .ref | default dict -}}
{{- $own := .root.Values.secret -}}
{{- if $ref.existingSecret -}}
{{- $ref.existingSecret -}}
{{- else if $ref.key -}}
{{- $made := list -}}
{{- if $own.externalSecret.enabled -}}
{{- range $own.externalSecret.data }}{{ $made = append $made .secretKey }}{{ end -}}
{{- end -}}
{{- if or (hasKey $own.data $ref.key) (has $ref.key $made) -}}
{{- include "keyfleet.ownSecret" .root -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keyfleet.secretFolder" -}}/etc/keyfleet/secrets{{- end -}}

{{/* The demonstration's keys: its world in tests/simulator knows them, and nobody else. */}}
{{- define "keyfleet.simulatedKeys" -}}
demo-atlas-1: atlas
demo-atlas-2: atlas
demo-borealis-1: borealis
demo-cygnus-1: cygnus
demo-draco-1: draco
demo-echo-1: echo
{{- end -}}

{{/* Every file from a Secret, as {file: {name, key}}. */}}
{{- define "keyfleet.secretFiles" -}}
{{- $root := . -}}
{{- $nats := .Values.nats.external -}}
{{- $redis := .Values.redis.external -}}
{{- $wanted := dict
  "api-keys" .Values.apiKeys "admin-token" .Values.adminToken
  "nats-url" $nats.urlSecret "nats-password" $nats.password "nats-token" $nats.token "nats-nkey-seed" $nats.nkeySeed
  "nats-creds" $nats.creds "nats-ca" $nats.ca "nats-cert" $nats.cert "nats-cert-key" $nats.certKey
  "redis-url" $redis.urlSecret "redis-password" $redis.password "redis-ca" $redis.ca -}}
{{- range .Values.clients }}{{ $_ := set $wanted (printf "client-%s" .name) . }}{{ end -}}
{{- range $file, $ref := .Values.secretFiles }}{{ $_ := set $wanted $file $ref }}{{ end -}}
{{- $files := dict -}}
{{- range $file, $ref := $wanted -}}
{{- $name := include "keyfleet.ref" (dict "root" $root "ref" $ref) -}}
{{- if $name }}{{ $_ := set $files $file (dict "name" $name "key" $ref.key) }}{{ end -}}
{{- end -}}
{{- if include "keyfleet.isSimulated" . -}}
{{- range $id, $project := include "keyfleet.simulatedKeys" . | fromYaml -}}
{{- $_ := set $files $id (dict "name" (printf "%s-simulator" (include "keyfleet.fullname" $root)) "key" $id) -}}
{{- end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{/* The configuration, as YAML. */}}
{{- define "keyfleet.config" -}}
{{- $folder := include "keyfleet.secretFolder" . -}}
{{- $files := include "keyfleet.secretFiles" . | fromYaml -}}
{{- $fullname := include "keyfleet.fullname" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $server := $config.server -}}
{{- $clients := $server.clients | default list -}}
{{- range .Values.clients -}}
{{- $clients = append $clients (dict "name" .name "token_file" (printf "%s/client-%s" $folder .name)) -}}
{{- end -}}
{{- if $clients -}}
{{- $_ := set $server "clients" $clients -}}
{{- else if include "keyfleet.isSimulated" . -}}
{{- $_ := set $server "allow_anonymous" true -}}
{{- end -}}
{{- if hasKey $files "admin-token" }}{{ $_ := set $server "admin_token_file" (printf "%s/admin-token" $folder) }}{{ end -}}
{{- if include "keyfleet.isSimulated" . -}}
{{- $keys := list -}}
{{- range $id, $project := include "keyfleet.simulatedKeys" . | fromYaml -}}
{{- $keys = append $keys (dict "id" $id "project" $project "key_file" (printf "%s/%s" $folder $id)) -}}
{{- end -}}
{{- $target := printf "http://%s-simulator:4809/v1beta/openai/" $fullname -}}
{{- $_ := set $config "groups" (list (dict "name" "simulator" "target_url" $target "api_keys" $keys)) -}}
{{- else if not $config.groups -}}
{{- $_ := set $config "groups" (list (dict "name" "default" "api_keys_file" (printf "%s/api-keys" $folder))) -}}
{{- end -}}
{{- $nats := $config.nats | default dict -}}
{{- if include "keyfleet.hasNats" . -}}
{{- with .Values.nats -}}
{{- if .enabled -}}
{{- $_ := set $config "nats_url" (printf "nats://%s-nats:4222" $fullname) -}}
{{- else if .external.url -}}
{{- $_ := set $config "nats_url" .external.url -}}
{{- else -}}
{{- $_ := set $config "nats_url_file" (printf "%s/nats-url" $folder) -}}
{{- end -}}
{{- if .external.user }}{{ $_ := set $nats "user" .external.user }}{{ end -}}
{{- range $option, $file := dict "password_file" "nats-password" "token_file" "nats-token" "nkey_seed_file" "nats-nkey-seed" "creds_file" "nats-creds" "ca_file" "nats-ca" "cert_file" "nats-cert" "key_file" "nats-cert-key" -}}
{{- if hasKey $files $file }}{{ $_ := set $nats $option (printf "%s/%s" $folder $file) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $nats }}{{ $_ := set $config "nats" $nats }}{{ end -}}
{{- $redis := $config.redis | default dict -}}
{{- if include "keyfleet.hasRedis" . -}}
{{- with .Values.redis -}}
{{- if .enabled -}}
{{- $_ := set $config "redis_url" (printf "redis://%s-redis:6379/0" $fullname) -}}
{{- else if .external.url -}}
{{- $_ := set $config "redis_url" .external.url -}}
{{- else -}}
{{- $_ := set $config "redis_url_file" (printf "%s/redis-url" $folder) -}}
{{- end -}}
{{- if .external.username }}{{ $_ := set $redis "username" .external.username }}{{ end -}}
{{- range $option, $file := dict "password_file" "redis-password" "ca_file" "redis-ca" -}}
{{- if hasKey $files $file }}{{ $_ := set $redis $option (printf "%s/%s" $folder $file) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- else if not (hasKey $server "state_file") -}}
{{- $_ := set $server "state_file" "/var/lib/keyfleet/keyfleet-state.json" -}}
{{- end -}}
{{- if $redis }}{{ $_ := set $config "redis" $redis }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What of the configuration a program takes up only when it starts: a change replaces its pods. Takes {root, component}. */}}
{{- define "keyfleet.restartChecksum" -}}
{{- $config := include "keyfleet.config" .root | fromYaml -}}
{{- $of := pick $config "nats" "nats_url" "nats_url_file" "redis" "redis_url" "redis_url_file" "redis_key_prefix" -}}
{{- $_ := set $of "telemetry" (omit ($config.telemetry | default dict) "propagate_upstream") -}}
{{- if eq .component "gateway" -}}
{{- $_ := set $of "server" (pick $config.server "host" "port" "ops_port" "state_file") -}}
{{- $_ := set $of "cors" (not (empty $config.server.cors_allowed_origins)) -}}
{{- else -}}
{{- $_ := set $of "coordinator" (merge (dict) ($config.coordinator | default dict) (pick $config.server "host")) -}}
{{- end -}}
{{- $of | toJson | sha256sum -}}
{{- end -}}

{{/* How long a gateway may take to end: preStop, drain, and half a minute for its last words to collectors and servers that may be slow. */}}
{{- define "keyfleet.gracePeriod" -}}
{{- add (int .Values.gateway.preStopSleepSeconds) (int .Values.config.server.drain_timeout_secs) 30 -}}
{{- end -}}
