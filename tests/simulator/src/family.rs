//! Error families by name, for rules.

use serde::{Deserialize, Serialize};

use crate::chance::Chance;
use crate::errors::{self, Failure};
use crate::exhausted::{self, Metered};
use crate::quota::{Dimension, Violation};
use crate::world::QuotaSpec;

macro_rules! families {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A known error of Google's, to be written in whatever dialect the request speaks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Family {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl Family {
            /// Every family.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in rules and in the log.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

families! {
    /// 400 "Request contains an invalid argument."
    BadRequest = "bad_request",
    /// 400 unknown field `store`.
    UnknownField = "unknown_field",
    /// 400 input token count over the limit.
    TooLong = "too_long",
    /// 400 missing thought signature.
    ThoughtSignature = "thought_signature",
    /// 400 inline payload over 20 MB.
    PayloadSize = "payload_size",
    /// 400 "User location is not supported", of the egress.
    Location = "location",
    /// 400 the model is not for this key.
    ModelNotAvailable = "model_not_available",
    /// 400 `API_KEY_INVALID`.
    ApiKeyInvalid = "api_key_invalid",
    /// 400 `API_KEY_INVALID`, "not found".
    ApiKeyNotFound = "api_key_not_found",
    /// 400 `API_KEY_INVALID`, "expired".
    ApiKeyExpired = "api_key_expired",
    /// 400 "Multiple authentication credentials received".
    MultipleCredentials = "multiple_credentials",
    /// 401 `ACCESS_TOKEN_TYPE_UNSUPPORTED`.
    AccessTokenUnsupported = "access_token_unsupported",
    /// 401 `CREDENTIALS_MISSING`.
    CredentialsMissing = "credentials_missing",
    /// 403 leaked key.
    Leaked = "leaked",
    /// 403 `CONSUMER_SUSPENDED`, with the secret.
    Suspended = "suspended",
    /// 403 project denied.
    Denied = "denied",
    /// 403 `SERVICE_DISABLED`.
    ServiceDisabled = "service_disabled",
    /// 403 `API_KEY_SERVICE_BLOCKED`.
    ServiceBlocked = "service_blocked",
    /// 403 `API_KEY_HTTP_REFERRER_BLOCKED`.
    ReferrerBlocked = "referrer_blocked",
    /// 403 `API_KEY_IP_ADDRESS_BLOCKED`.
    IpBlocked = "ip_blocked",
    /// 403 unregistered caller.
    Unregistered = "unregistered",
    /// 403 no access to the File.
    File403 = "file_403",
    /// 403 no access to the `CachedContent`.
    Cached403 = "cached_403",
    /// 403 "The caller does not have permission".
    PermissionDenied = "permission_denied",
    /// 404 of a model.
    ModelNotFound = "model_not_found",
    /// 404 without a body.
    Empty404 = "empty_404",
    /// 404 as HTML.
    Html404 = "html_404",
    /// 413 as HTML.
    Html413 = "html_413",
    /// 429 requests per minute.
    PerMinute429 = "per_minute_429",
    /// 429 input tokens per minute.
    Tokens429 = "tokens_429",
    /// 429 requests per day.
    PerDay429 = "per_day_429",
    /// 429 per minute and per day in one body.
    MinuteAndDay429 = "minute_and_day_429",
    /// 429 `limit: 0`.
    LimitZero = "limit_zero",
    /// 429 "Resource has been exhausted (e.g. check quota)."
    Bare429 = "bare_429",
    /// 429 "You exceeded your current quota" without `QuotaFailure`.
    NoDetails429 = "no_details_429",
    /// 429 prepayment credits.
    Prepay = "prepay",
    /// 429 spending cap of the project.
    SpendingCap = "spending_cap",
    /// 429 spending cap of the billing account.
    BillingCap = "billing_cap",
    /// 429 of the limiter that counts what a project spends in ten minutes.
    SpendRate = "spend_rate",
    /// 429 as HTML, for the address.
    Html429 = "html_429",
    /// 499 CANCELLED.
    Cancelled = "cancelled",
    /// 500 INTERNAL.
    Internal = "internal",
    /// 502 as HTML.
    Html502 = "html_502",
    /// 503 "currently experiencing high demand".
    Overloaded = "overloaded",
    /// 503 "The model is overloaded".
    Overloaded2025 = "overloaded_2025",
    /// 504 `DEADLINE_EXCEEDED`.
    Deadline = "deadline",
}

/// What the text of an error mentions of its request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mention<'a> {
    pub(crate) secret: &'a str,
    pub(crate) project_number: u64,
    pub(crate) rpc: &'a str,
    pub(crate) version: &'a str,
    pub(crate) metered: Metered<'a>,
    pub(crate) quota: QuotaSpec,
    pub(crate) window_ms: u64,
}

impl Family {
    pub(crate) fn failure(self, of: Mention<'_>, chance: &mut Chance) -> Failure {
        let number = of.project_number;
        match self {
            Self::BadRequest => {
                errors::bad_request("400:bad_request", "Request contains an invalid argument.")
            }
            Self::UnknownField => errors::unknown_fields(&[("store".to_owned(), "")]),
            Self::TooLong => errors::bad_request(
                "400:too_long",
                "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
            ),
            Self::ThoughtSignature => crate::tools::missing_signature("get_weather", 2),
            Self::PayloadSize => errors::payload_size(20_971_520),
            Self::Location => errors::location(),
            Self::ModelNotAvailable => errors::model_not_available(of.metered.model),
            Self::ApiKeyInvalid => errors::key_invalid(),
            Self::ApiKeyNotFound => errors::key_not_found(),
            Self::ApiKeyExpired => errors::key_expired(),
            Self::MultipleCredentials => errors::multiple_credentials(),
            Self::AccessTokenUnsupported => errors::access_token_unsupported(of.rpc),
            Self::CredentialsMissing => errors::credentials_missing(of.rpc),
            Self::Leaked => errors::leaked(),
            Self::Suspended => errors::suspended(of.secret, number),
            Self::Denied => errors::project_denied(),
            Self::ServiceDisabled => errors::service_disabled(number),
            Self::ServiceBlocked => errors::service_blocked(number, of.rpc),
            Self::ReferrerBlocked => errors::referrer_blocked(number),
            Self::IpBlocked => errors::ip_blocked(number),
            Self::Unregistered => errors::unregistered(),
            Self::File403 => errors::file_forbidden("abc-123"),
            Self::Cached403 => errors::cache_forbidden(),
            Self::PermissionDenied => errors::permission_denied(),
            _ => self.later(of, chance),
        }
    }

    /// From 404 up.
    fn later(self, of: Mention<'_>, chance: &mut Chance) -> Failure {
        match self {
            Self::ModelNotFound => errors::model_not_found(of.metered.model, of.version, "generateContent"),
            Self::Empty404 => Failure::empty("404:empty", 404),
            Self::Html404 => errors::not_found_page(),
            Self::Html413 => errors::too_large_page(),
            Self::PerMinute429 => quota(&[(Dimension::Requests, 10)], of, chance),
            Self::Tokens429 => quota(&[(Dimension::InputTokens, 250_000)], of, chance),
            Self::PerDay429 => quota(&[(Dimension::Day, 250)], of, chance),
            Self::MinuteAndDay429 => quota(&[(Dimension::Day, 250), (Dimension::Requests, 10)], of, chance),
            Self::LimitZero => quota(&[(Dimension::Requests, 0)], of, chance),
            Self::NoDetails429 => exhausted::no_details(),
            Self::Prepay => exhausted::prepay_depleted(),
            Self::SpendingCap => exhausted::spending_cap(),
            Self::BillingCap => exhausted::billing_cap(),
            Self::SpendRate => exhausted::spend_rate(),
            Self::Html429 => exhausted::sorry_page(),
            Self::Cancelled => Failure::api("499", 499, "CANCELLED", "The operation was cancelled."),
            Self::Internal => Failure::api(
                "500",
                500,
                "INTERNAL",
                "An internal error has occurred. Please retry or report in \
                 https://developers.generativeai.google/guide/troubleshooting",
            ),
            Self::Html502 => Failure::html("502:html", 502, crate::pages::BAD_GATEWAY),
            Self::Overloaded => Failure::api(
                "503",
                503,
                "UNAVAILABLE",
                "This model is currently experiencing high demand. Spikes in demand are usually temporary. Please \
                 try again later.",
            ),
            Self::Overloaded2025 => {
                Failure::api("503", 503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
            }
            Self::Deadline => errors::deadline(),
            _ => exhausted::bare(),
        }
    }
}

fn quota(exceeded: &[(Dimension, u64)], of: Mention<'_>, chance: &mut Chance) -> Failure {
    let window = of.window_ms.clamp(1_000, 60_000);
    let delay = i64::try_from(window / 2 + chance.below(window / 2)).unwrap_or(30_000);
    let violation = |(dimension, limit): &(Dimension, u64)| Violation {
        dimension: *dimension,
        limit: *limit,
        retry_ms: delay,
    };
    let violations: Vec<Violation> = exceeded.iter().map(violation).collect();
    exhausted::quota(&violations, of.metered, of.quota, chance)
}
