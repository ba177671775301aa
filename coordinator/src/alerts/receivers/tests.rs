mod alertmanager;
mod delivery;
mod limits;
mod signature;

use std::collections::BTreeMap;

use crate::alerts::notice::{Item, Notice, Severity, Status};

/// 2015-10-21 07:28:00 UTC
const NOW: i64 = 1_445_412_480_000;

fn item(number: usize, name: &str) -> Item {
    Item {
        fingerprint: format!("f{number}"),
        labels: BTreeMap::from([
            ("key".to_owned(), format!("{number} {name}")),
            ("model".to_owned(), name.to_owned()),
        ]),
        summary: format!("Key {number} of {name} is disabled"),
        advice: "Replace the key.".to_owned(),
        value: Some("0.3".to_owned()),
        status: Status::Firing,
        started_ms: NOW - 60_000,
        ended_ms: None,
    }
}

fn notice(alerts: Vec<Item>) -> Notice {
    Notice {
        id: "msg-1".to_owned(),
        rule: "key_disabled".to_owned(),
        title: "A key is disabled".to_owned(),
        severity: Severity::Critical,
        status: Status::Firing,
        alerts,
        cluster: "keyfleet".to_owned(),
    }
}

fn resolved(firing: &Notice, now_ms: i64) -> Notice {
    let over = |item: &Item| Item { status: Status::Resolved, ended_ms: Some(now_ms), ..item.clone() };
    Notice { status: Status::Resolved, alerts: firing.alerts.iter().map(over).collect(), ..firing.clone() }
}
