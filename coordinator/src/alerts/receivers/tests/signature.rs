//! The signature of Standard Webhooks, against the vector that its libraries are tested with.

use super::super::webhook::headers;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyfleet_service::config::SigningKey;

const BODY: &str = r#"{"test": 2432232314}"#;
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const AT_MS: i64 = 1_614_265_330_999;

fn key(text: &str) -> SigningKey {
    SigningKey::new(STANDARD.decode(text).unwrap())
}

fn value(headers: &[(&str, String)], name: &str) -> Option<String> {
    headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone())
}

#[test]
fn a_message_is_signed_as_the_libraries_expect() {
    let sent = headers(&[key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")], ID, AT_MS, BODY);
    assert_eq!(value(&sent, "webhook-id").as_deref(), Some(ID));
    assert_eq!(value(&sent, "webhook-timestamp").as_deref(), Some("1614265330"));
    let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(value(&sent, "webhook-signature").as_deref(), Some(expected));
}

#[test]
fn every_secret_signs_and_without_one_nothing_does() {
    let (old, new) = (key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), key("C2FVsBQIhrscChlQIMV+b5sSYspob7oD"));
    let both = value(&headers(&[new.clone(), old.clone()], ID, AT_MS, BODY), "webhook-signature").unwrap();
    let alone = |key: &SigningKey| {
        value(&headers(std::slice::from_ref(key), ID, AT_MS, BODY), "webhook-signature").unwrap()
    };
    assert_eq!(both, format!("{} {}", alone(&new), alone(&old)));
    assert_ne!(alone(&new), alone(&old));
    assert_eq!(value(&headers(&[], ID, AT_MS, BODY), "webhook-signature"), None);
}
