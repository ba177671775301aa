use super::*;

fn of(status: u16, body: &str) -> Outcome {
    classify(StatusCode::from_u16(status).unwrap(), None, &ErrorBody::parse(body.as_bytes()))
}

fn google(code: u16, status: &str, message: &str, details: &str) -> String {
    format!(
        r#"{{"error":{{"code":{code},"message":"{message}","status":"{status}","details":[{details}]}}}}"#
    )
}

fn info(reason: &str) -> String {
    format!(r#"{{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"{reason}"}}"#)
}

fn violation(id: &str, value: &str) -> String {
    format!(
        r#"{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaId":"{id}"{value}}}]}}"#
    )
}

const MINUTE: &str = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier";
const DAY: &str = "GenerateRequestsPerDayPerProjectPerModel-FreeTier";
const TOKENS: &str = "GenerateContentInputTokensPerModelPerMinute-FreeTier";

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_family_has_its_cause() {
    let exceeded = "You exceeded your current quota, please check your plan and billing details.";
    let table: &[(u16, String, Cause)] = &[
        (
            400,
            google(400, "INVALID_ARGUMENT", "API key not valid.", &info("API_KEY_INVALID")),
            Cause::InvalidKey,
        ),
        (
            400,
            google(400, "INVALID_ARGUMENT", "Unknown name \\\"store\\\": Cannot find field.", ""),
            Cause::BadRequest,
        ),
        (400, google(400, "INVALID_ARGUMENT", "you wrote: API key not valid", ""), Cause::BadRequest),
        (
            400,
            google(
                400,
                "INVALID_ARGUMENT",
                "Unknown name \\\"Invalid Authorization header.\\\": Cannot find field.",
                "",
            ),
            Cause::BadRequest,
        ),
        (
            400,
            google(
                400,
                "INVALID_ARGUMENT",
                "x is not available for this API key.",
                r#"{"@type":"type.googleapis.com/google.rpc.BadRequest"}"#,
            ),
            Cause::BadRequest,
        ),
        (
            400,
            google(400, "FAILED_PRECONDITION", "User location is not supported for the API use.", ""),
            Cause::Location,
        ),
        (
            400,
            google(400, "FAILED_PRECONDITION", "The File billing-1 is not in an ACTIVE state.", ""),
            Cause::BadRequest,
        ),
        (
            400,
            google(
                400,
                "FAILED_PRECONDITION",
                "Gemini API free tier is not available in your country. Please enable billing on your project.",
                "",
            ),
            Cause::Billing,
        ),
        (
            400,
            google(
                400,
                "INVALID_ARGUMENT",
                "Multiple authentication credentials received. Please pass only one.",
                "",
            ),
            Cause::CredentialRejected,
        ),
        (
            400,
            google(400, "INVALID_ARGUMENT", "Model gemini-x is not available for this API key.", ""),
            Cause::ModelNotAvailable,
        ),
        (
            401,
            google(401, "UNAUTHENTICATED", "x", &info("ACCESS_TOKEN_TYPE_UNSUPPORTED")),
            Cause::Unauthenticated,
        ),
        (
            403,
            google(
                403,
                "PERMISSION_DENIED",
                "Your API key was reported as leaked. Please use another API key.",
                "",
            ),
            Cause::Leaked,
        ),
        (
            403,
            google(403, "PERMISSION_DENIED", "Permission denied", &info("CONSUMER_SUSPENDED")),
            Cause::ProjectDisabled,
        ),
        (
            403,
            google(
                403,
                "PERMISSION_DENIED",
                "Your project has been denied access. Please contact support.",
                "",
            ),
            Cause::ProjectDisabled,
        ),
        (403, google(403, "PERMISSION_DENIED", "x", &info("SERVICE_DISABLED")), Cause::ProjectDisabled),
        (403, google(403, "PERMISSION_DENIED", "x", &info("API_KEY_SERVICE_BLOCKED")), Cause::Restricted),
        (403, google(403, "PERMISSION_DENIED", "x", &info("API_KEY_IP_ADDRESS_BLOCKED")), Cause::Restricted),
        (
            403,
            google(
                403,
                "PERMISSION_DENIED",
                "You do not have permission to access the File abc or it may not exist.",
                "",
            ),
            Cause::ForeignResource,
        ),
        (403, google(403, "PERMISSION_DENIED", "The caller does not have permission", ""), Cause::BadRequest),
        (404, google(404, "NOT_FOUND", "models/x is not found", ""), Cause::BadRequest),
        (404, String::new(), Cause::BadRequest),
        (413, "<html>too large</html>".into(), Cause::BadRequest),
        (429, google(429, "RESOURCE_EXHAUSTED", exceeded, &violation(MINUTE, "")), Cause::PerMinute),
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", exceeded, &violation(DAY, r#","quotaValue":"20""#)),
            Cause::PerDay,
        ),
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", exceeded, &violation(TOKENS, "")),
            Cause::InputTokensPerMinute,
        ),
        (
            429,
            google(
                429,
                "RESOURCE_EXHAUSTED",
                exceeded,
                &[violation(MINUTE, ""), violation(DAY, "")].join(","),
            ),
            Cause::PerDay,
        ),
        (
            429,
            google(
                429,
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for metric: m, limit: 0, model: x",
                &violation(DAY, ""),
            ),
            Cause::LimitZero,
        ),
        (429, google(429, "RESOURCE_EXHAUSTED", exceeded, ""), Cause::UnnamedQuota),
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).", ""),
            Cause::BareRateLimit,
        ),
        (429, google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted.", ""), Cause::Billing),
        (429, "<html>Sorry... automated queries</html>".into(), Cause::AddressThrottled),
        (429, String::new(), Cause::BareRateLimit),
        (499, google(499, "CANCELLED", "The operation was cancelled.", ""), Cause::Cancelled),
        (500, google(500, "INTERNAL", "An internal error has occurred.", ""), Cause::Internal),
        (502, "<!DOCTYPE html>Error 502 (Server Error)!!1".into(), Cause::Overloaded),
        (503, google(503, "UNAVAILABLE", "The model is overloaded.", ""), Cause::Overloaded),
        (504, google(504, "DEADLINE_EXCEEDED", "The request timed out.", ""), Cause::Deadline),
    ];
    for (status, body, expected) in table {
        assert_eq!(of(*status, body).cause, *expected, "{status} {body}");
        let compat = format!("[{body}]");
        if body.starts_with('{') {
            assert_eq!(of(*status, &compat).cause, *expected, "array-wrapped: {status} {body}");
        }
    }
}

#[test]
fn a_billing_account_is_wider_than_a_project() {
    let body =
        google(429, "RESOURCE_EXHAUSTED", "Your billing account has exceeded its monthly spending cap.", "");
    assert_eq!(of(429, &body).scope, Scope::BillingAccount);
}

#[test]
fn the_longest_stated_delay_counts() {
    let delay = r#"{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"58s"}"#;
    let body = google(
        429,
        "RESOURCE_EXHAUSTED",
        "quota. Please retry in 58.821668433s.",
        &[violation(MINUTE, ""), delay.to_owned()].join(","),
    );
    assert_eq!(of(429, &body).retry_after, Some(Duration::from_millis(58_822)));
}
