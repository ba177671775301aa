//! Every error body that Google sends, as data, and the three dialects that it is written in.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

const SERVICE: &str = "generativelanguage.googleapis.com";

/// An error before it is written in a dialect.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: u16,
    pub(crate) body: Body,
    /// What the log calls it.
    pub(crate) tag: Cow<'static, str>,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Api { status: &'static str, message: Cow<'static, str>, details: Vec<Value> },
    Html(&'static str),
    Empty,
}

/// How an error is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error":{…}}`: native.
    Object,
    /// `[{"error":{…}}]`: compatible, and native streams without `alt=sse`.
    Array,
    /// `{"error":{"code":"invalid_request","message":…}}`.
    Interactions,
}

#[derive(Serialize)]
struct Wire<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    code: u16,
    message: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "<[Value]>::is_empty")]
    details: &'a [Value],
}

impl Failure {
    pub(crate) fn api(
        tag: &'static str,
        code: u16,
        status: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        let body = Body::Api { status, message: message.into(), details: Vec::new() };
        Self { code, body, tag: Cow::Borrowed(tag) }
    }

    pub(crate) fn with(mut self, detail: Value) -> Self {
        if let Body::Api { details, .. } = &mut self.body {
            details.push(detail);
        }
        self
    }

    /// Adds the message once more as `LocalizedMessage`, as Google does for key errors.
    fn localized(self) -> Self {
        let Body::Api { message, .. } = &self.body else { return self };
        let detail = json!({"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US", "message": message});
        self.with(detail)
    }

    pub(crate) fn html(tag: &'static str, code: u16, page: &'static str) -> Self {
        Self { code, body: Body::Html(page), tag: Cow::Borrowed(tag) }
    }

    pub(crate) fn empty(tag: &'static str, code: u16) -> Self {
        Self { code, body: Body::Empty, tag: Cow::Borrowed(tag) }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(crate) fn content_type(&self) -> &'static str {
        match self.body {
            Body::Api { .. } => "application/json; charset=UTF-8",
            Body::Html(_) | Body::Empty => "text/html; charset=UTF-8",
        }
    }

    /// The body as Google prints it: indented by two, members in Google's order.
    pub(crate) fn render(&self, dialect: Dialect) -> Bytes {
        let (status, message, details) = match &self.body {
            Body::Api { status, message, details } => (*status, message.as_ref(), details.as_slice()),
            Body::Html(page) => return Bytes::from_static(page.as_bytes()),
            Body::Empty => return Bytes::new(),
        };
        if dialect == Dialect::Interactions {
            let code = interactions_code(self.code);
            return Bytes::from(json!({"error": {"code": code, "message": message}}).to_string());
        }
        let wire = Wire { error: Inner { code: self.code, message, status, details } };
        let text = serde_json::to_string_pretty(&wire).unwrap_or_default();
        Bytes::from(if dialect == Dialect::Array { format!("[{text}\n]\n") } else { format!("{text}\n") })
    }

    /// On one line, for an event inside the stream of an interaction.
    pub(crate) fn render_interaction_event(&self) -> Value {
        let message = if let Body::Api { message, .. } = &self.body { message.as_ref() } else { "" };
        json!({"event_type": "error", "error": {"code": interactions_code(self.code), "message": message}})
    }

    /// On one line, for an event inside a stream.
    pub(crate) fn render_inline(&self, wrapped: bool) -> String {
        let (status, message, details) = match &self.body {
            Body::Api { status, message, details } => (*status, message.as_ref(), details.as_slice()),
            Body::Html(page) => return (*page).to_owned(),
            Body::Empty => return String::new(),
        };
        let wire = Wire { error: Inner { code: self.code, message, status, details } };
        let text = serde_json::to_string(&wire).unwrap_or_default();
        if wrapped { format!("[{text}]") } else { text }
    }
}

fn interactions_code(code: u16) -> &'static str {
    match code {
        400 => "invalid_request",
        401 => "unauthenticated",
        403 => "permission_denied",
        404 => "not_found",
        429 => "rate_limit_exceeded",
        503 => "unavailable",
        _ => "internal_error",
    }
}

fn error_info(reason: &str, metadata: &Value) -> Value {
    json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": metadata})
}

pub(crate) fn bad_request(tag: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
    Failure::api(tag, 400, "INVALID_ARGUMENT", message)
}

/// Protobuf's refusal of fields that the message does not have; `at` is the path of the enclosing field, or empty.
pub(crate) fn unknown_fields(names: &[(String, &'static str)]) -> Failure {
    let describe = |(name, at): &(String, &'static str)| {
        let at = if at.is_empty() { String::new() } else { format!(" at '{at}'") };
        format!("Invalid JSON payload received. Unknown name \"{name}\"{at}: Cannot find field.")
    };
    let lines: Vec<String> = names.iter().map(describe).collect();
    let violations: Vec<Value> = lines.iter().map(|line| json!({"description": line})).collect();
    let detail = json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations});
    bad_request("400:unknown_field", lines.join("\n")).with(detail)
}

pub(crate) fn multiple_credentials() -> Failure {
    bad_request("auth:multiple", "Multiple authentication credentials received. Please pass only one.")
}

pub(crate) fn missing_authorization() -> Failure {
    bad_request("auth:missing", "Missing or invalid Authorization header.")
}

pub(crate) fn invalid_authorization() -> Failure {
    bad_request("auth:malformed", "Invalid Authorization header.")
}

fn dead_key(tag: &'static str, message: &'static str) -> Failure {
    bad_request(tag, message).with(error_info("API_KEY_INVALID", &json!({"service": SERVICE}))).localized()
}

pub(crate) fn key_invalid() -> Failure {
    dead_key("auth:api_key_invalid", "API key not valid. Please pass a valid API key.")
}

pub(crate) fn key_not_found() -> Failure {
    dead_key("auth:api_key_not_found", "API Key not found. Please pass a valid API key.")
}

pub(crate) fn key_expired() -> Failure {
    dead_key("auth:api_key_expired", "API key expired. Please renew the API key.")
}

pub(crate) fn access_token_unsupported(method: &str) -> Failure {
    let message = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or \
                   other valid authentication credential. See \
                   https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let metadata = json!({"service": SERVICE, "method": method});
    Failure::api("auth:access_token_type_unsupported", 401, "UNAUTHENTICATED", message)
        .with(error_info("ACCESS_TOKEN_TYPE_UNSUPPORTED", &metadata))
}

pub(crate) fn credentials_missing(method: &str) -> Failure {
    let message = "API keys are not supported by this API. Expected OAuth2 access token or other authentication \
                   credentials that assert a principal. See https://cloud.google.com/docs/authentication";
    let metadata = json!({"service": SERVICE, "method": method});
    Failure::api("auth:credentials_missing", 401, "UNAUTHENTICATED", message)
        .with(error_info("CREDENTIALS_MISSING", &metadata))
}

pub(crate) fn denied(tag: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
    Failure::api(tag, 403, "PERMISSION_DENIED", message)
}

pub(crate) fn unregistered() -> Failure {
    denied(
        "auth:unregistered",
        "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or \
         other form of API consumer identity to call this API.",
    )
}

pub(crate) fn user_project_denied(project: &str) -> Failure {
    let message = format!(
        "Caller does not have required permission to use project {project}. Grant the caller the \
         roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission."
    );
    let metadata = json!({"service": SERVICE, "consumer": format!("projects/{project}")});
    denied("auth:user_project_denied", message).with(error_info("USER_PROJECT_DENIED", &metadata))
}

pub(crate) fn leaked() -> Failure {
    denied("auth:leaked", "Your API key was reported as leaked. Please use another API key.")
}

/// The one body that shows the whole secret, three times.
pub(crate) fn suspended(secret: &str, number: u64) -> Failure {
    let message = format!("Permission denied: Consumer 'api_key:{secret}' has been suspended.");
    let metadata = json!({
        "service": SERVICE, "consumer": format!("projects/{number}"), "containerInfo": format!("api_key:{secret}"),
    });
    denied("auth:consumer_suspended", message).with(error_info("CONSUMER_SUSPENDED", &metadata)).localized()
}

pub(crate) fn project_denied() -> Failure {
    denied("auth:project_denied", "Your project has been denied access. Please contact support.")
}

pub(crate) fn service_disabled(number: u64) -> Failure {
    let url = format!(
        "https://console.developers.google.com/apis/api/generativelanguage.googleapis.com/overview?project={number}"
    );
    let message = format!(
        "Generative Language API has not been used in project {number} before or it is disabled. Enable it by \
         visiting {url} then retry. If you enabled this API recently, wait a few minutes for the action to propagate \
         to our systems and retry."
    );
    let metadata = json!({
        "service": SERVICE, "consumer": format!("projects/{number}"), "containerInfo": number.to_string(),
        "serviceTitle": "Generative Language API", "activationUrl": url,
    });
    let help = json!({
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{"description": "Google developers console API activation", "url": url}],
    });
    denied("auth:service_disabled", message)
        .with(error_info("SERVICE_DISABLED", &metadata))
        .localized()
        .with(help)
}

pub(crate) fn service_blocked(number: u64, method: &str) -> Failure {
    let message = format!("Requests to this API {SERVICE} method {method} are blocked.");
    let metadata = json!({
        "service": SERVICE, "consumer": format!("projects/{number}"), "apiName": SERVICE, "methodName": method,
    });
    denied("auth:service_blocked", message).with(error_info("API_KEY_SERVICE_BLOCKED", &metadata))
}

pub(crate) fn referrer_blocked(number: u64) -> Failure {
    let metadata =
        json!({"service": SERVICE, "consumer": format!("projects/{number}"), "httpReferrer": "<empty>"});
    denied("auth:referrer_blocked", "Requests from referer <empty> are blocked.")
        .with(error_info("API_KEY_HTTP_REFERRER_BLOCKED", &metadata))
}

pub(crate) fn ip_blocked(number: u64) -> Failure {
    let message = "The provided API key has an IP address restriction. The originating IP address of the call \
                   (127.0.0.1) violates this restriction.";
    let metadata =
        json!({"service": SERVICE, "consumer": format!("projects/{number}"), "callerIp": "127.0.0.1"});
    denied("auth:ip_blocked", message).with(error_info("API_KEY_IP_ADDRESS_BLOCKED", &metadata))
}

pub(crate) fn location() -> Failure {
    Failure::api(
        "400:location",
        400,
        "FAILED_PRECONDITION",
        "User location is not supported for the API use.",
    )
}

pub(crate) fn model_not_found(model: &str, version: &str, method: &str) -> Failure {
    let message = format!(
        "models/{model} is not found for API version {version}, or is not supported for {method}. Call ListModels to \
         see the list of available models and their supported methods."
    );
    Failure::api("404:model", 404, "NOT_FOUND", message)
}

pub(crate) fn model_not_available(model: &str) -> Failure {
    bad_request("400:model_not_available", format!("Model {model} is not available for this API key."))
}

pub(crate) fn file_forbidden(id: &str) -> Failure {
    denied("403:file", format!("You do not have permission to access the File {id} or it may not exist."))
}

/// A video that is not ready yet.
pub(crate) fn file_not_active(id: &str) -> Failure {
    let message = format!("The File {id} is not in an ACTIVE state and usage is not allowed.");
    Failure::api("400:file_state", 400, "FAILED_PRECONDITION", message)
}

pub(crate) fn payload_size(limit: usize) -> Failure {
    bad_request("400:payload_size", format!("Request payload size exceeds the limit: {limit} bytes."))
}

pub(crate) fn deadline() -> Failure {
    Failure::api("504", 504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.")
}

pub(crate) fn cache_forbidden() -> Failure {
    denied("403:cached_content", "CachedContent not found (or permission denied)")
}

/// A resource of another project, for kinds that have no message of their own.
pub(crate) fn permission_denied() -> Failure {
    denied("403:permission_denied", "The caller does not have permission")
}

pub(crate) fn no_entity() -> Failure {
    Failure::api("404:resource", 404, "NOT_FOUND", "Requested entity was not found.")
}

pub(crate) fn not_found_page() -> Failure {
    Failure::html("404:path", 404, crate::pages::NOT_FOUND)
}

pub(crate) fn too_large_page() -> Failure {
    Failure::html("413:html", 413, crate::pages::TOO_LARGE)
}
