{{/* What contradicts itself is refused here, with what to do; everything else is the programs' business. */}}

{{- define "keyfleet.validate" -}}
{{- $values := .Values -}}
{{- $nats := include "keyfleet.hasNats" . -}}
{{- $redis := include "keyfleet.hasRedis" . -}}
{{- range $name := list "nats" "redis" -}}
{{- $of := index $values $name -}}
{{- $external := or $of.external.url $of.external.urlSecret -}}
{{- if and $of.enabled $external -}}
{{- fail (printf "%s.enabled and %s.external contradict each other: set %s.enabled=false to use the external server" $name $name $name) -}}
{{- end -}}
{{- if and $of.external.url $of.external.urlSecret -}}
{{- fail (printf "%s.external.url and %s.external.urlSecret contradict each other: keep one of the two" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and $nats (not $redis) -}}
{{- fail "NATS without Redis: set redis.enabled=true or redis.external.url, or do without both (nats.enabled=false, gateway.replicas=1)" -}}
{{- end -}}
{{- $scaled := or $values.autoscaling.enabled $values.keda.enabled -}}
{{- if and $values.autoscaling.enabled $values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled contradict each other: two autoscalers would work against each other; keep one" -}}
{{- end -}}
{{- if and (not $nats) $scaled -}}
{{- fail "autoscaling needs NATS and Redis, through which many gateways act as one: set nats.enabled=true or nats.external.url" -}}
{{- end -}}
{{- if and (not $nats) (gt (int $values.gateway.replicas) 1) -}}
{{- fail "gateway.replicas: more than one needs NATS and Redis, through which they act as one; set nats.enabled=true or nats.external.url, or gateway.replicas=1" -}}
{{- end -}}
{{- range $name := list "autoscaling" "keda" -}}
{{- $of := index $values $name -}}
{{- if and $of.enabled (gt (int $of.minReplicas) (int $of.maxReplicas)) -}}
{{- fail (printf "%s.minReplicas is greater than %s.maxReplicas" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and $values.autoscaling.enabled (not (or $values.autoscaling.targetCPUUtilizationPercentage $values.autoscaling.targetInFlightRequests $values.autoscaling.extraMetrics)) -}}
{{- fail "autoscaling without a metric: set autoscaling.targetCPUUtilizationPercentage or autoscaling.targetInFlightRequests" -}}
{{- end -}}
{{- if and $values.metrics.podMonitor.enabled $values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor and metrics.serviceMonitor contradict each other: everything would be counted twice; keep one" -}}
{{- end -}}
{{- if and $values.secret.data $values.secret.externalSecret.enabled -}}
{{- fail "secret.data and secret.externalSecret contradict each other: both make the same Secret; keep one" -}}
{{- end -}}
{{- if and (not (include "keyfleet.hasKeys" .)) (not $values.simulator.enabled) -}}
{{- fail "no keys: name a Secret in apiKeys.existingSecret, or set simulator.enabled=true" -}}
{{- end -}}
{{- $server := $values.config.server -}}
{{- $clients := or $values.clients $server.clients -}}
{{- if not (or $clients $server.allow_anonymous (include "keyfleet.isSimulated" .)) -}}
{{- fail "everybody who reaches the Service could use your keys: name clients, or set config.server.allow_anonymous=true" -}}
{{- end -}}
{{- if eq (int $server.port) (int $server.ops_port) -}}
{{- fail "config.server.ops_port is that of the clients: give it a port of its own" -}}
{{- end -}}
{{- include "keyfleet.validateRefs" . -}}
{{- include "keyfleet.validateConfig" . -}}
{{- end -}}

{{/* A Secret that is spoken of must be named, and a name must be used once. */}}
{{- define "keyfleet.validateRefs" -}}
{{- $root := . -}}
{{- $names := list -}}
{{- range .Values.clients -}}
{{- if not (include "keyfleet.ref" (dict "root" $root "ref" .)) -}}
{{- fail (printf "clients: %s has no token: name a Secret in existingSecret, or put the entry %s into secret.data" .name (.key | default "")) -}}
{{- end -}}
{{- if has .name $names }}{{ fail (printf "clients: the name %s is there twice" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- range $file, $ref := .Values.secretFiles -}}
{{- if not (include "keyfleet.ref" (dict "root" $root "ref" $ref)) -}}
{{- fail (printf "secretFiles.%s: no Secret has it: name one in existingSecret, or put the entry %s into secret.data" $file ($ref.key | default "")) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "nats" "redis" -}}
{{- range $option, $ref := omit (index $root.Values $name).external "url" "user" "username" -}}
{{- if and $ref (not (include "keyfleet.ref" (dict "root" $root "ref" $ref))) -}}
{{- fail (printf "%s.external.%s: no Secret has it: name one in existingSecret, or put the entry %s into secret.data" $name $option ($ref.key | default "")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The configuration is readable for everybody who may read ConfigMaps: no secrets there, and nothing that the chart says itself. */}}
{{- define "keyfleet.validateConfig" -}}
{{- $where := dict
  "nats_url" "nats.external.url" "nats_url_file" "nats.external.urlSecret"
  "redis_url" "redis.external.url" "redis_url_file" "redis.external.urlSecret" -}}
{{- range $option, $value := $where -}}
{{- if hasKey $.Values.config $option }}{{ fail (printf "config.%s: say it in %s" $option $value) }}{{ end -}}
{{- end -}}
{{- include "keyfleet.refuseSecrets" (dict "at" "config" "value" .Values.config) -}}
{{- end -}}

{{/* Takes {at, value}. */}}
{{- define "keyfleet.refuseSecrets" -}}
{{- $at := .at -}}
{{- if kindIs "map" .value -}}
{{- $plainURL := eq (get .value "type" | toString) "alertmanager" -}}
{{- range $name, $value := .value -}}
{{- $here := printf "%s.%s" $at $name -}}
{{- $secret := has $name (list "admin_token" "token" "key" "password" "nkey_seed" "secret" "routing_key" "heartbeat_url") -}}
{{- $secret = or $secret (and (eq $name "url") (not $plainURL)) -}}
{{- $secret = or $secret (and (eq $name "api_keys") (kindIs "string" $value)) -}}
{{- if and $secret $value -}}
{{- fail (printf "%s is a secret, and the configuration is a ConfigMap: put it into a Secret, name that in secretFiles, and give %s_file: /etc/keyfleet/secrets/NAME" $here $name) -}}
{{- end -}}
{{- if and (eq $name "api_keys") (kindIs "slice" $value) -}}
{{- range $index, $key := $value -}}
{{- if not (kindIs "map" $key) -}}
{{- fail (printf "%s[%d] is a secret, and the configuration is a ConfigMap: put the keys into a Secret, name that in apiKeys or secretFiles, and give api_keys_file: /etc/keyfleet/secrets/NAME" $here $index) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "keyfleet.refuseSecrets" (dict "at" $here "value" $value) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $index, $value := .value -}}
{{- include "keyfleet.refuseSecrets" (dict "at" (printf "%s[%d]" $at $index) "value" $value) -}}
{{- end -}}
{{- else if kindIs "string" .value -}}
{{- if regexMatch "^[a-z0-9+.-]+://[^/?#]*@" .value -}}
{{- fail (printf "%s holds a user and a password, and the configuration is a ConfigMap: put the URL into a Secret, name that in secretFiles, and give %s_file: /etc/keyfleet/secrets/NAME" $at (regexFind "[a-z_]+$" $at)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
