//! The families of 429 `RESOURCE_EXHAUSTED`.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::chance::Chance;
use crate::errors::{Body, Failure};
use crate::quota::{Dimension, Violation};
use crate::world::QuotaSpec;

const EXHAUSTED: &str = "RESOURCE_EXHAUSTED";
const PREAMBLE: &str = "You exceeded your current quota, please check your plan and billing details. For more \
                        information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To \
                        monitor your current usage, head to: https://ai.dev/rate-limit. ";

/// Whose quota is exceeded: what the names of metrics depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metered<'a> {
    pub(crate) model: &'a str,
    pub(crate) paid: bool,
    pub(crate) embedding: bool,
}

impl Metered<'_> {
    fn metric(self, dimension: Dimension) -> String {
        let what = if self.embedding { "embed_content" } else { "generate_content" };
        let name = match (self.paid, dimension) {
            (false, Dimension::InputTokens) => format!("{what}_free_tier_input_token_count"),
            (false, _) => format!("{what}_free_tier_requests"),
            (true, Dimension::InputTokens) => format!("{what}_paid_tier_input_token_count"),
            (true, Dimension::Requests) => "generate_requests_per_model".to_owned(),
            (true, Dimension::Day) => "generate_requests_per_model_per_day".to_owned(),
        };
        format!("generativelanguage.googleapis.com/{name}")
    }

    fn quota_id(self, dimension: Dimension) -> String {
        let what = if self.embedding { "EmbedContent" } else { "Generate" };
        let content = if self.embedding { what } else { "GenerateContent" };
        let id = match dimension {
            Dimension::Requests => format!("{what}RequestsPerMinutePerProjectPerModel"),
            Dimension::Day => format!("{what}RequestsPerDayPerProjectPerModel"),
            Dimension::InputTokens if self.paid => format!("{content}PaidTierInputTokensPerModelPerMinute"),
            Dimension::InputTokens => format!("{content}InputTokensPerModelPerMinute"),
        };
        if self.paid { id } else { format!("{id}-FreeTier") }
    }
}

/// Family A (and B, where a limit is zero): every exceeded dimension in one body. The message carries nine decimals
/// of the delay and `RetryInfo` whole seconds, as captured.
pub(crate) fn quota(
    violations: &[Violation],
    metered: Metered<'_>,
    spec: QuotaSpec,
    chance: &mut Chance,
) -> Failure {
    let limit_of = |violation: &Violation| if spec.limit_zero { 0 } else { violation.limit };
    let mut message = PREAMBLE.to_owned();
    let mut listed = Vec::new();
    for violation in violations {
        let (metric, limit) = (metered.metric(violation.dimension), limit_of(violation));
        let model = metered.model;
        // Writing to a string cannot fail.
        let _ = write!(message, "\n* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}");
        let mut item = json!({
            "quotaMetric": metric, "quotaId": metered.quota_id(violation.dimension),
            "quotaDimensions": {"location": "global", "model": model},
        });
        if limit > 0 && !spec.omit_quota_value {
            item["quotaValue"] = Value::String(limit.to_string());
        }
        listed.push(item);
    }
    let longest = violations.iter().map(|violation| violation.retry_ms).max().unwrap_or(0);
    let retry_ms = if spec.retry_delay_zero { 0 } else { longest };
    let mut delay = format!("{}s", retry_ms / 1000);
    if !spec.omit_retry_info {
        let decimals = if spec.retry_delay_zero { 0 } else { chance.below(1_000_000) };
        let fine = format!("{}.{:03}{decimals:06}s", retry_ms / 1000, retry_ms % 1000);
        let _ = write!(message, "\nPlease retry in {fine}.");
        if spec.retry_delay_fine {
            delay = fine;
        }
    }
    let mut details = Vec::new();
    if !spec.omit_details {
        details.push(help());
        details.push(json!({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": listed}));
        if !spec.omit_retry_info {
            details.push(json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}));
        }
        if spec.shuffle_details {
            shuffle(&mut details, chance);
        }
    }
    let body = Body::Api { status: EXHAUSTED, message: Cow::Owned(message), details };
    Failure { code: 429, body, tag: tag(violations, spec.limit_zero) }
}

fn tag(violations: &[Violation], limit_zero: bool) -> Cow<'static, str> {
    let name = |violation: &Violation| match violation.dimension {
        _ if limit_zero || violation.limit == 0 => "limit_zero",
        Dimension::Requests => "perminute",
        Dimension::InputTokens => "tokens",
        Dimension::Day => "perday",
    };
    let mut names: Vec<&str> = violations.iter().map(name).collect();
    names.dedup();
    Cow::Owned(format!("429:{}", names.join("+")))
}

fn shuffle(details: &mut [Value], chance: &mut Chance) {
    for at in (1..details.len()).rev() {
        let other = usize::try_from(chance.below(at as u64 + 1)).unwrap_or(at);
        details.swap(at, other);
    }
}

fn help() -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }],
    })
}

/// Family C.
pub(crate) fn bare() -> Failure {
    Failure::api("429:bare", 429, EXHAUSTED, "Resource has been exhausted (e.g. check quota).")
}

/// Family D: the quota text, but nothing that says which quota.
pub(crate) fn no_details() -> Failure {
    Failure::api("429:no_details", 429, EXHAUSTED, PREAMBLE).with(help())
}

/// Family E.
pub(crate) fn prepay_depleted() -> Failure {
    let message = "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to \
                   manage your project and billing.";
    Failure::api("429:prepay", 429, EXHAUSTED, message)
}

pub(crate) fn spending_cap() -> Failure {
    let message = "Your project has exceeded its monthly spending cap. Please go to AI Studio at \
                   https://ai.studio/spend to manage your project spend cap.";
    Failure::api("429:spending_cap", 429, EXHAUSTED, message)
}

pub(crate) fn billing_cap() -> Failure {
    let message = "Your billing account has exceeded its monthly spending cap. Please go to AI Studio at \
                   https://ai.studio/projects to manage your project and billing.";
    Failure::api("429:billing_cap", 429, EXHAUSTED, message)
}

/// The text of this one is not known.
pub(crate) fn spend_rate() -> Failure {
    Failure::api(
        "429:spend_rate",
        429,
        EXHAUSTED,
        "Your project has exceeded its spend-based rate limit. Please try again later.",
    )
}

/// No more files. The metric is named after what is used up, not after a time.
pub(crate) fn storage(limit: u64) -> Failure {
    let violation = json!({
        "quotaMetric": "generativelanguage.googleapis.com/file_storage_bytes",
        "quotaId": "FileStorageBytesPerProject", "quotaValue": limit.to_string(),
    });
    Failure::api("429:storage", 429, EXHAUSTED, PREAMBLE)
        .with(help())
        .with(json!({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}))
}

pub(crate) fn sorry_page() -> Failure {
    Failure::html("429:html", 429, crate::pages::SORRY)
}
