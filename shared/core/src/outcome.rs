//! What an answer means: [`classify`] turns status and error body into an [`Outcome`], which says whose state it
//! concerns and what the request does next. Nothing here keeps state or decides for how long; that is `block.rs`.
//!
//! Reasons of a structured error (`details[].reason`) decide before its message does, and the message is only
//! searched where the upstream sends nothing else: a prompt echoed inside an error must not disable a key.

use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::error_body::{ErrorBody, Period};

/// Who or what a failure is charged to; never wider or narrower than the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The caller: nothing of ours changes.
    Client,
    /// One credential.
    Key,
    /// One credential for one model.
    KeyModel,
    /// One project's quota for one model.
    Bucket,
    /// All of a project.
    Project,
    /// All projects that one billing account pays for.
    BillingAccount,
    /// The model, whoever asks.
    Model,
    /// The way out: our address, a proxy, or the target host.
    Egress,
}

/// Why an attempt did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The request itself is wrong, or names what does not exist.
    BadRequest,
    /// The resource belongs to another project, or is gone.
    ForeignResource,
    /// The model is not offered to this key.
    ModelNotAvailable,
    /// The key is unknown, deleted or expired.
    InvalidKey,
    /// 401: the kind of credential is not (or no longer) accepted.
    Unauthenticated,
    /// The key was found in public and shut off.
    Leaked,
    /// The key's own restrictions forbid this API, referrer or address.
    Restricted,
    /// A credential was refused for the way in which it was presented.
    CredentialRejected,
    /// The project is suspended, denied, or has the API switched off.
    ProjectDisabled,
    /// Requests or tokens per minute.
    PerMinute,
    /// Input tokens per minute: a smaller request might still pass.
    InputTokensPerMinute,
    /// A quota that returns at Pacific midnight.
    PerDay,
    /// The project's tier has no quota for this model at all.
    LimitZero,
    /// 429 without any detail.
    BareRateLimit,
    /// 429 that speaks of quota but names none.
    UnnamedQuota,
    /// Prepaid credit or a spending cap is used up.
    Billing,
    /// 503 and its like.
    Overloaded,
    /// 500.
    Internal,
    /// 504: the model did not answer in the upstream's own time.
    Deadline,
    /// No first byte within our time.
    Timeout,
    /// 499 that we did not cause.
    Cancelled,
    /// The upstream could not be reached.
    Connect,
    /// The connection broke before an answer.
    Reset,
    /// The upstream throttles our address.
    AddressThrottled,
    /// The upstream does not serve our location.
    Location,
    /// A success that holds no answer at all.
    EmptyAnswer,
    /// A success that stopped before its end.
    Truncated,
    /// An operator said so.
    ByOperator,
    /// It was not sent: the quota drawn for it was no longer ours when there was a connection.
    PermitLapsed,
}

/// What the request that met the failure may do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Give the answer to the caller: another attempt would say the same.
    Never,
    /// Try another key at once; bounded by the pool and the deadline only.
    OtherKey,
    /// Try again after a back-off, within the budget for transient errors.
    BackOff,
}

/// What one failed attempt means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Whose state it concerns.
    pub scope: Scope,
    /// Why.
    pub cause: Cause,
    /// What the request does next.
    pub retry: Retry,
    /// How long the upstream asks to stay away, if it said so.
    pub retry_after: Option<Duration>,
}

impl Cause {
    /// The scope and the retry that belong to this cause: the one table.
    pub const fn meaning(self) -> (Scope, Retry) {
        match self {
            Self::BadRequest | Self::ForeignResource => (Scope::Client, Retry::Never),
            Self::PermitLapsed => (Scope::Client, Retry::OtherKey),
            Self::ModelNotAvailable => (Scope::KeyModel, Retry::OtherKey),
            Self::InvalidKey
            | Self::Unauthenticated
            | Self::Leaked
            | Self::Restricted
            | Self::CredentialRejected
            | Self::ByOperator => (Scope::Key, Retry::OtherKey),
            Self::ProjectDisabled | Self::Billing => (Scope::Project, Retry::OtherKey),
            Self::PerMinute
            | Self::InputTokensPerMinute
            | Self::PerDay
            | Self::LimitZero
            | Self::BareRateLimit
            | Self::UnnamedQuota => (Scope::Bucket, Retry::OtherKey),
            Self::Overloaded
            | Self::Internal
            | Self::Deadline
            | Self::Cancelled
            | Self::EmptyAnswer
            | Self::Truncated => (Scope::Model, Retry::BackOff),
            Self::Timeout | Self::Connect | Self::Reset => (Scope::Egress, Retry::BackOff),
            Self::AddressThrottled | Self::Location => (Scope::Egress, Retry::OtherKey),
        }
    }

    /// The outcome of this cause with nothing else known.
    pub const fn outcome(self) -> Outcome {
        let (scope, retry) = self.meaning();
        Outcome { scope, cause: self, retry, retry_after: None }
    }

    /// True if no waiting helps: an operator, or the slow re-check, must see to it.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::InvalidKey
                | Self::Unauthenticated
                | Self::Leaked
                | Self::Restricted
                | Self::ProjectDisabled
        )
    }

    /// The cause in the words of logs, metrics and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::ForeignResource => "foreign_resource",
            Self::ModelNotAvailable => "model_not_available",
            Self::InvalidKey => "invalid_key",
            Self::Unauthenticated => "unauthenticated",
            Self::Leaked => "leaked",
            Self::Restricted => "restricted",
            Self::CredentialRejected => "credential_rejected",
            Self::ProjectDisabled => "project_disabled",
            Self::PerMinute => "per_minute",
            Self::InputTokensPerMinute => "input_tokens_per_minute",
            Self::PerDay => "per_day",
            Self::LimitZero => "limit_zero",
            Self::BareRateLimit => "bare_rate_limit",
            Self::UnnamedQuota => "unnamed_quota",
            Self::Billing => "billing",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
            Self::Deadline => "deadline",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::AddressThrottled => "address_throttled",
            Self::Location => "location",
            Self::EmptyAnswer => "empty_answer",
            Self::Truncated => "truncated",
            Self::ByOperator => "by_operator",
            Self::PermitLapsed => "permit_lapsed",
        }
    }
}

/// What an error answer means. `body` is the decoded body, whatever its form; `retry_after` is the header's value
/// in seconds, which Google does not send but proxies do.
pub fn classify(status: StatusCode, retry_after: Option<Duration>, body: &ErrorBody) -> Outcome {
    let cause = cause(status, body);
    let (mut scope, retry) = cause.meaning();
    if cause == Cause::Billing && body.mentions("billing account") {
        scope = Scope::BillingAccount;
    }
    Outcome { scope, cause, retry, retry_after: body.retry_delay.max(retry_after) }
}

fn cause(status: StatusCode, body: &ErrorBody) -> Cause {
    match status.as_u16() {
        400 => bad_request(body),
        401 => Cause::Unauthenticated,
        402 => Cause::Billing,
        403 => forbidden(body),
        408 | 504 => Cause::Deadline,
        429 => rate_limited(body),
        499 => Cause::Cancelled,
        500 => Cause::Internal,
        501 | 505 => Cause::BadRequest,
        502.. => Cause::Overloaded,
        _ => Cause::BadRequest,
    }
}

fn bad_request(body: &ErrorBody) -> Cause {
    if matches!(body.reason.as_str(), "API_KEY_INVALID" | "API_KEY_EXPIRED") {
        return Cause::InvalidKey;
    }
    if body.status == "FAILED_PRECONDITION" {
        if body.mentions("user location is not supported") {
            return Cause::Location;
        }
        // The text may quote the name that a caller gave to a file: two words are none.
        if body.mentions("enable billing") || body.mentions("billing account") {
            return Cause::Billing;
        }
    }
    // From here on only the message is left to go by, and messages quote the request.
    if body.field_violations || !body.reason.is_empty() || body.message.starts_with("Invalid JSON payload") {
        return Cause::BadRequest;
    }
    // The compat surface refuses some kinds of key by complaining about the header that carried it.
    let refused = [
        "Multiple authentication credentials received. Please pass only one.",
        "Missing or invalid Authorization header.",
        "Invalid Authorization header.",
    ];
    if refused.contains(&body.message.as_str()) {
        return Cause::CredentialRejected;
    }
    let ends = [
        "is not available for this API key.",
        "is not available for your project.",
        "is not available for this project.",
    ];
    if body.message.len() < 200 && ends.iter().any(|end| body.message.ends_with(end)) {
        return Cause::ModelNotAvailable;
    }
    Cause::BadRequest
}

fn forbidden(body: &ErrorBody) -> Cause {
    match body.reason.as_str() {
        "CONSUMER_SUSPENDED" | "CONSUMER_INVALID" | "SERVICE_DISABLED" => return Cause::ProjectDisabled,
        "BILLING_DISABLED" => return Cause::Billing,
        "API_KEY_INVALID" => return Cause::InvalidKey,
        reason if reason.starts_with("API_KEY_") => return Cause::Restricted,
        _ => {}
    }
    if body.mentions("reported as leaked") {
        Cause::Leaked
    } else if body.mentions("project has been denied access") {
        Cause::ProjectDisabled
    } else if body.mentions("access the file") || body.mentions("cachedcontent not found") {
        Cause::ForeignResource
    } else if body.mentions("unregistered callers") {
        Cause::Unauthenticated
    } else {
        Cause::BadRequest
    }
}

fn rate_limited(body: &ErrorBody) -> Cause {
    if body.limit_zero {
        return Cause::LimitZero;
    }
    match body.quota {
        Some(Period::Day) => return Cause::PerDay,
        Some(Period::Minute) => return Cause::PerMinute,
        Some(Period::MinuteTokens) => return Cause::InputTokensPerMinute,
        None => {}
    }
    if body.html {
        Cause::AddressThrottled
    } else if ["prepayment credits", "spending cap", "spend cap"].iter().any(|text| body.mentions(text)) {
        Cause::Billing
    } else if body.mentions("exceeded your current quota") {
        Cause::UnnamedQuota
    } else {
        Cause::BareRateLimit
    }
}

#[cfg(test)]
mod tests;
