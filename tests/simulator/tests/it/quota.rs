//! Quota as clients meet it: per project and model, in bodies with every violation, until the window or the day ends.

use keyfleet_simulator::{Family, Limit, QuotaSpec, Rule, World};
use serde_json::{Value, json};

use crate::client::{Answer, CHAT, HELLO, NATIVE, chat, gemini, get, post};

fn detail<'a>(answer: &'a Value, kind: &str) -> &'a Value {
    let kind = format!("type.googleapis.com/google.rpc.{kind}");
    let details = answer["error"]["details"].as_array().unwrap();
    details.iter().find(|detail| detail["@type"] == *kind).unwrap_or(&Value::Null)
}

fn quota_ids(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let violations = detail(&json, "QuotaFailure")["violations"].as_array().unwrap().clone();
    violations.iter().map(|violation| violation["quotaId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn keys_of_one_project_share_its_quota_and_other_projects_do_not() {
    let world = World { window_ms: 3_600_000, ..World::pool(2, 2).limited(&Limit::rpm(1)) };
    let gemini = gemini(world).await;
    let secrets = gemini.world().secrets();
    let mut statuses = Vec::new();
    for secret in &secrets {
        statuses.push(post(&gemini, secret, NATIVE, HELLO).await.status);
    }
    statuses.push(post(&gemini, &secrets[0], CHAT, &chat("gemini-2.5-pro", false)).await.status);
    assert_eq!(statuses, [200, 429, 200, 429, 200]);
    let stats = gemini.stats();
    assert_eq!((stats.ok, stats.rejected_429), (3, 2));
    assert_eq!(stats.bucket("p1", "gemini-2.5-flash").rejected_429, 1);
    gemini.clock().advance_ms(3_600_000);
    assert_eq!(post(&gemini, &secrets[1], NATIVE, HELLO).await.status, 200);
    assert_eq!(gemini.log()[1].outcome, "429:perminute");
}

#[tokio::test]
async fn a_429_lists_every_violation_and_a_delay_of_two_precisions() {
    let limit = Limit { model: "*".into(), rpm: Some(1), tpm: Some(20), rpd: Some(1) };
    let gemini = gemini(World::pool(1, 1).limited(&limit)).await;
    let secret = &gemini.world().secrets()[0];
    assert_eq!(post(&gemini, secret, NATIVE, HELLO).await.status, 200);
    let long = HELLO.replace("hello", &"hello ".repeat(20));
    let answer = post(&gemini, secret, NATIVE, &long).await;
    assert_eq!(
        quota_ids(&answer),
        [
            "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
            "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            "GenerateContentInputTokensPerModelPerMinute-FreeTier"
        ]
    );
    let json = answer.json();
    assert_eq!(detail(&json, "QuotaFailure")["violations"][2]["quotaValue"], json!("20"));
    let whole = detail(&json, "RetryInfo")["retryDelay"].as_str().unwrap().trim_end_matches('s').to_owned();
    let message = answer.message();
    let fine = message.rsplit_once("Please retry in ").unwrap().1.trim_end_matches("s.");
    let (seconds, decimals) = fine.split_once('.').unwrap();
    assert_eq!((seconds, decimals.len()), (whole.as_str(), 9), "{message}");
    assert!(seconds.parse::<u64>().unwrap() <= 60);
    assert_eq!(answer.header("retry-after"), "");
}

#[tokio::test]
async fn a_day_ends_at_pacific_midnight_of_the_virtual_clock() {
    let limit = Limit { model: "*".into(), rpd: Some(1), ..Limit::default() };
    let gemini = gemini(World::pool(1, 1).limited(&limit)).await;
    let secret = &gemini.world().secrets()[0];
    let at = |text: &str| gemini.clock().set_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond());
    // The day of 25 hours, and the one of 23.
    for (start, late, next) in [
        ("2026-11-01T07:00:00Z", "2026-11-02T07:59:00Z", "2026-11-02T08:00:00Z"),
        ("2027-03-14T08:00:00Z", "2027-03-15T06:59:00Z", "2027-03-15T07:00:00Z"),
    ] {
        let mut statuses = Vec::new();
        for time in [start, late, next] {
            at(time);
            statuses.push(post(&gemini, secret, NATIVE, HELLO).await.status);
        }
        assert_eq!(statuses, [200, 429, 200], "{start}");
    }
}

#[tokio::test]
async fn details_can_be_left_out() {
    let quota =
        |quota| World { quota, ..World::pool(1, 1).limited(&Limit { rpm: Some(0), ..Limit::rpm(0) }) };
    let gemini = gemini(quota(QuotaSpec { omit_details: true, ..QuotaSpec::default() })).await;
    let secret = &gemini.world().secrets()[0];
    let bare = post(&gemini, secret, NATIVE, HELLO).await.json();
    assert!(bare["error"].get("details").is_none());
    gemini.set_world(quota(QuotaSpec { omit_retry_info: true, ..QuotaSpec::default() })).unwrap();
    let answer = post(&gemini, secret, NATIVE, HELLO).await;
    assert!(detail(&answer.json(), "RetryInfo").is_null() && !answer.message().contains("Please retry"));
    let violation = detail(&answer.json(), "QuotaFailure")["violations"][0].clone();
    let shuffled = QuotaSpec { shuffle_details: true, retry_delay_zero: true, ..QuotaSpec::default() };
    gemini.set_world(quota(shuffled)).unwrap();
    let mut orders = std::collections::HashSet::new();
    for _ in 0..32 {
        let json = post(&gemini, secret, NATIVE, HELLO).await.json();
        assert_eq!(detail(&json, "RetryInfo")["retryDelay"], "0s");
        let details = json["error"]["details"].as_array().unwrap();
        orders.insert(details.iter().map(|detail| detail["@type"].to_string()).collect::<Vec<_>>());
    }
    assert_eq!(orders.len(), 6);
    assert!(answer.message().contains("limit: 0,") && violation.get("quotaValue").is_none());
}

#[tokio::test]
async fn a_rule_is_free_of_quota_unless_it_says_otherwise() {
    let gemini = gemini(World::pool(1, 1).limited(&Limit::rpm(1))).await;
    let secret = &gemini.world().secrets()[0];
    gemini.add_rule(Rule::family(Family::Overloaded).times(2));
    gemini.add_rule(Rule { through_quota: true, ..Rule::family(Family::Internal) });
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(post(&gemini, secret, NATIVE, HELLO).await.status);
    }
    assert_eq!(statuses, [503, 503, 500, 429]);
}

#[tokio::test]
async fn tokens_can_be_counted_over_all_models_together() {
    let mut world = World::pool(1, 1).limited(&Limit { tpm: Some(1_000), rpm: None, ..Limit::rpm(0) });
    world.projects[0].shared_tpm = Some(2 * (HELLO.len() as u64 / 4));
    let gemini = gemini(world).await;
    let secret = &gemini.world().secrets()[0];
    let other = NATIVE.replace("2.5", "3.8");
    let mut statuses = Vec::new();
    for path in [NATIVE, &other, NATIVE, &other] {
        statuses.push(post(&gemini, secret, path, HELLO).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    let refused = post(&gemini, secret, &other, HELLO).await;
    assert_eq!(quota_ids(&refused), ["GenerateContentInputTokensPerModelPerMinute-FreeTier"]);
    let violation = detail(&refused.json(), "QuotaFailure")["violations"][0].clone();
    assert_eq!(violation["quotaDimensions"]["model"], "gemini-3.8-flash");
    let stats = gemini.stats();
    assert_eq!((stats.bucket("p1", "*").accepted, stats.bucket("p1", "gemini-2.5-flash").accepted), (2, 1));
    gemini.clock().advance_ms(60_000);
    assert_eq!(post(&gemini, secret, NATIVE, HELLO).await.status, 200);
}

#[tokio::test]
async fn what_is_spent_is_counted_over_any_ten_minutes_and_all_models() {
    let mut world = World::pool(2, 1);
    world.projects[0].spend_limit = Some(100);
    let gemini = gemini(world).await;
    let secrets = gemini.world().secrets();
    let (other, mut statuses) = (NATIVE.replace("2.5", "3.8"), Vec::new());
    // Each costs 60 tokens of answer and some of prompt.
    for minutes in [0, 5, 4, 1, 0] {
        gemini.clock().advance_ms(minutes * 60_000);
        let path = if minutes == 4 { &other } else { NATIVE };
        statuses.push(post(&gemini, &secrets[0], path, HELLO).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200, 429], "the first is forgotten after ten minutes");
    let refused = post(&gemini, &secrets[0], NATIVE, HELLO).await.json();
    assert!(refused["error"]["status"] == "RESOURCE_EXHAUSTED" && refused["error"]["details"].is_null());
    assert_eq!(gemini.log()[2].outcome, "429:spend_rate");
    assert_eq!(get(&gemini, &secrets[0], "/v1beta/models").await.status, 200);
    assert_eq!(post(&gemini, &secrets[1], NATIVE, HELLO).await.status, 200);
}

#[tokio::test]
async fn a_delay_can_have_all_its_decimals() {
    let quota = QuotaSpec { retry_delay_fine: true, ..QuotaSpec::default() };
    let gemini = gemini(World { quota, ..World::pool(1, 1).limited(&Limit::rpm(0)) }).await;
    let answer = post(&gemini, &gemini.world().secrets()[0], NATIVE, HELLO).await;
    let json = answer.json();
    let delay = detail(&json, "RetryInfo")["retryDelay"].as_str().unwrap();
    assert_eq!(delay.split_once('.').unwrap().1.len(), 10, "{delay}");
    assert!(answer.message().ends_with(&format!("Please retry in {delay}.")), "{}", answer.message());
}
