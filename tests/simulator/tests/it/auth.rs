//! The truth tables of credentials, and the standing of keys and projects.

use keyfleet_simulator::{AuthSpec, Credential, Key, KeyState, Project, ProjectState, World};
use serde_json::json;

use crate::client::{CHAT, HELLO, NATIVE, chat, gemini, get, post, send};

type Headers<'a> = &'a [(&'a str, &'a str)];

#[tokio::test]
async fn the_compatible_surface_takes_exactly_one_bearer() {
    let gemini = gemini(World::pool(1, 1)).await;
    let key = &gemini.world().secrets()[0];
    let good = format!("Bearer {key}");
    let table: [(Headers<'_>, bool, u16, &str); 9] = [
        (&[("authorization", &good)], false, 200, ""),
        (&[], false, 400, "Missing or invalid Authorization header."),
        (&[], true, 400, "Missing or invalid Authorization header."),
        (&[("x-goog-api-key", key)], false, 400, "Missing or invalid Authorization header."),
        (&[("authorization", &good), ("x-goog-api-key", key)], false, 400, "Multiple authentication"),
        (&[("authorization", &good)], true, 400, "Multiple authentication"),
        (&[("authorization", "Bearer nobody"), ("x-goog-api-key", key)], false, 400, "API key not valid."),
        (&[("authorization", "Bearer ")], false, 400, "Invalid Authorization header."),
        (&[("authorization", "Bearer ya29.token")], false, 401, "Request had invalid authentication"),
    ];
    for (headers, query, status, message) in table {
        let path = if query { format!("{CHAT}?key={key}") } else { CHAT.to_owned() };
        let answer = send(&gemini, "POST", &path, headers, &chat("gemini-2.5-flash", false)).await;
        assert_eq!(answer.status, status, "{headers:?} {query}: {}", answer.text());
        if status != 200 {
            assert!(answer.text().starts_with("[{\n  \"error\": {\n    \"code\": "), "{}", answer.text());
            assert!(answer.message().starts_with(message), "{headers:?}: {}", answer.text());
        }
    }
    let log = gemini.log();
    assert_eq!(log[4].credentials, [Credential::Bearer, Credential::GoogHeader]);
    assert_eq!(log[5].credentials, [Credential::Bearer, Credential::Query]);
    assert_eq!((log[0].key_id.as_deref(), log[0].outcome.as_str()), (Some("k1"), "ok"));
    assert_eq!(log[1].outcome, "auth:missing");
}

#[tokio::test]
async fn the_native_surface_takes_the_header_or_the_query_and_no_bearer() {
    let gemini = gemini(World::pool(1, 1)).await;
    let key = &gemini.world().secrets()[0];
    let bearer = format!("Bearer {key}");
    let with_query = format!("{NATIVE}?key={key}");
    let table: [(Headers<'_>, &str, u16, &str); 6] = [
        (&[("x-goog-api-key", key)], NATIVE, 200, ""),
        (&[], &with_query, 200, ""),
        (&[], NATIVE, 403, "Method doesn't allow unregistered callers"),
        (&[("authorization", &bearer)], NATIVE, 401, "Request had invalid authentication credentials."),
        (&[("x-goog-api-key", "nobody")], NATIVE, 400, "API key not valid."),
        (
            &[("x-goog-api-key", key), ("x-goog-user-project", "p")],
            NATIVE,
            403,
            "Caller does not have required",
        ),
    ];
    for (headers, path, status, message) in table {
        let answer = send(&gemini, "POST", path, headers, HELLO).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        if status != 200 {
            assert!(answer.text().starts_with("{\n  \"error\": {\n    \"code\": "), "{}", answer.text());
            assert!(answer.message().starts_with(message), "{headers:?}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn every_standing_of_a_key_has_its_own_refusal() {
    let table = [
        (KeyState::Invalid, 400, "API_KEY_INVALID"),
        (KeyState::NotFound, 400, "API_KEY_INVALID"),
        (KeyState::Expired, 400, "API_KEY_INVALID"),
        (KeyState::Leaked, 403, ""),
        (KeyState::ServiceBlocked, 403, "API_KEY_SERVICE_BLOCKED"),
        (KeyState::ReferrerBlocked, 403, "API_KEY_HTTP_REFERRER_BLOCKED"),
        (KeyState::IpBlocked, 403, "API_KEY_IP_ADDRESS_BLOCKED"),
        (KeyState::UnrestrictedStandard, 401, "CREDENTIALS_MISSING"),
    ];
    let key = |(at, (state, ..)): (usize, &(KeyState, u16, &str))| Key {
        state: *state,
        ..Key::new(&format!("k{at}"), &format!("p{at}"))
    };
    let keys = table.iter().enumerate().map(key).collect();
    let gemini = gemini(World { keys, ..World::default() }).await;
    for ((state, status, reason), secret) in table.iter().zip(gemini.world().secrets()) {
        let answer = post(&gemini, &secret, NATIVE, HELLO).await;
        assert_eq!(answer.status, *status, "{state:?}");
        assert_eq!(
            answer.json()["error"]["details"][0]["reason"].as_str().unwrap_or_default(),
            *reason,
            "{state:?}"
        );
    }
}

#[tokio::test]
async fn a_project_in_trouble_takes_its_keys_along() {
    let table = [
        (ProjectState::Suspended, 403, 403),
        (ProjectState::Denied, 403, 403),
        (ProjectState::ServiceDisabled, 403, 403),
        (ProjectState::PrepayDepleted, 429, 200),
        (ProjectState::SpendingCap, 429, 200),
        (ProjectState::BillingCap, 429, 200),
        (ProjectState::Ok, 429, 200),
    ];
    let mut world = World::pool(table.len(), 1);
    for (project, (state, ..)) in world.projects.iter_mut().zip(table) {
        let billed = matches!(state, ProjectState::BillingCap | ProjectState::Ok);
        *project = Project {
            state,
            number: 4711,
            billing_account: billed.then(|| "account".to_owned()),
            ..project.clone()
        };
    }
    let gemini = gemini(world).await;
    for ((state, generate, list), secret) in table.iter().zip(gemini.world().secrets()) {
        let answer = post(&gemini, &secret, NATIVE, HELLO).await;
        assert_eq!(answer.status, *generate, "{state:?}: {}", answer.text());
        assert_eq!(get(&gemini, &secret, "/v1/models").await.status, *list, "{state:?}");
        if *state == ProjectState::Suspended {
            assert!(answer.message().contains(&secret), "the body that echoes the secret");
            let metadata = &answer.json()["error"]["details"][0]["metadata"];
            assert_eq!(metadata["consumer"], json!("projects/4711"));
        }
    }
}

#[tokio::test]
async fn a_place_and_a_model_can_be_closed_to_a_key_alone() {
    let mut world = World::pool(3, 1);
    world.projects[0].egress_ok = false;
    world.keys[1].models_not_available = vec!["gemini-2.5-flash".into()];
    let gemini = gemini(world).await;
    let secrets = gemini.world().secrets();
    let location = post(&gemini, &secrets[0], NATIVE, HELLO).await;
    assert_eq!(location.json()["error"]["status"], "FAILED_PRECONDITION");
    let model = post(&gemini, &secrets[1], NATIVE, HELLO).await;
    assert_eq!(model.message(), "Model gemini-2.5-flash is not available for this API key.");
    assert_eq!(post(&gemini, &secrets[1], CHAT, &chat("gemini-2.5-pro", false)).await.status, 200);
    assert_eq!(post(&gemini, &secrets[2], NATIVE, HELLO).await.status, 200);
}

#[tokio::test]
async fn what_google_changed_back_and_forth_is_a_switch() {
    let auth = AuthSpec { goog_header_on_compat: true, reject_auth_keys_on_compat: true };
    let keys = vec![Key { secret: "AQ.Ab8".into(), ..Key::new("k1", "p1") }];
    let gemini = gemini(World { auth, keys, ..World::default() }).await;
    let body = chat("gemini-2.5-flash", false);
    assert_eq!(send(&gemini, "POST", CHAT, &[("x-goog-api-key", "AQ.Ab8")], &body).await.status, 200);
    let bearer = post(&gemini, "AQ.Ab8", CHAT, &body).await;
    assert!(bearer.message().starts_with("Multiple authentication credentials"), "{}", bearer.text());
}

#[tokio::test]
async fn the_demo_pool_serves_with_every_key_but_the_dead_one() {
    let gemini = gemini(World { latency: keyfleet_simulator::Latency::Zero, ..World::demo() }).await;
    let world = gemini.world();
    for (key, secret) in world.keys.iter().zip(world.secrets()) {
        let status = post(&gemini, &secret, NATIVE, HELLO).await.status;
        assert_eq!(status == 200, key.state == KeyState::Ok, "{}", key.id);
    }
    assert_eq!(gemini.stats().ok, 5);
}
