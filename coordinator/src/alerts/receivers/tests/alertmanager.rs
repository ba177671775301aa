//! The real Alertmanager takes our alerts, lists them, and knows when they are over.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyfleet_service::config::{Receiver, Secret, Wire};
use serde_json::Value;
use tempfile::TempDir;

use super::super::{Clients, deliver};
use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// Killed on drop.
struct Alertmanager {
    child: Child,
    url: String,
    _folder: TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Alertmanager {
    async fn start() -> Self {
        let program = std::env::var("KEYFLEET_TEST_ALERTMANAGER")
            .unwrap_or_else(|_| "prometheus-alertmanager".to_owned());
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("alertmanager.yml");
        std::fs::write(&config, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let child = spawn(&program, &config, folder.path(), port);
        let mut server = Self { child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
        let begin = Instant::now();
        let client = Clients::default().by(None).unwrap();
        loop {
            let ready = client.get(format!("{}/-/ready", server.url)).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success()) {
                return server;
            }
            assert!(server.child.try_wait().unwrap().is_none(), "{program} ended at once");
            assert!(begin.elapsed() < LONG, "{program} is not ready");
            tokio::task::yield_now().await;
        }
    }

    /// What it lists as active.
    async fn alerts(&self) -> Vec<Value> {
        let answer = Clients::default()
            .by(None)
            .unwrap()
            .get(format!("{}/api/v2/alerts", self.url))
            .send()
            .await
            .unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    fn receiver(&self) -> Receiver {
        let wire = Wire::Alertmanager { url: Secret::new(self.url.clone()) };
        Receiver { name: "prom".to_owned(), wire, proxy_url: None }
    }
}

fn spawn(program: &str, config: &Path, folder: &Path, port: u16) -> Child {
    let mut command = Command::new(program);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.path={}", folder.join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--cluster.listen-address=");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let hint = "`apt-get install prometheus-alertmanager`, or KEYFLEET_TEST_ALERTMANAGER";
    command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; install it: {hint}"))
}

#[tokio::test]
async fn it_lists_our_alerts_until_they_are_over() {
    let server = Alertmanager::start().await;
    let (client, receiver) = (Clients::default().by(None).unwrap(), server.receiver());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let now = i64::try_from(now).unwrap();
    let mut alerts: Vec<Item> = (0..1_200).map(|number| item(number, "a \"quoted\" <name> 🔥")).collect();
    for alert in &mut alerts {
        alert.started_ms = now - 60_000;
        alert.labels.insert("label-with.dots".to_owned(), "x\u{7}".to_owned());
    }
    let firing = notice(alerts);
    deliver(&client, &receiver, &firing, now).await.unwrap();
    let listed = server.alerts().await;
    assert_eq!(listed.len(), 1_200);
    let is_seven = |alert: &&Value| alert["labels"]["key"].as_str().unwrap().starts_with("7 ");
    let seven = listed.iter().find(is_seven).unwrap();
    let labels = serde_json::json!({
        "alertname": "KeyfleetKeyDisabled", "severity": "critical", "cluster": "keyfleet",
        "key": "7 a \"quoted\" <name> 🔥", "model": "a \"quoted\" <name> 🔥", "label_with_dots": "x", "fingerprint": "f7",
    });
    assert_eq!(seven["labels"], labels);
    assert_eq!(seven["annotations"]["description"], "Replace the key.");
    assert_eq!(seven["status"]["state"], "active");

    // A repetition is no second alert.
    deliver(&client, &receiver, &firing, now + 1).await.unwrap();
    assert_eq!(server.alerts().await.len(), 1_200);

    let over = resolved(&firing, now);
    let half = Notice { alerts: over.alerts[..700].to_vec(), ..over.clone() };
    deliver(&client, &receiver, &half, now).await.unwrap();
    assert_eq!(server.alerts().await.len(), 500);
    deliver(&client, &receiver, &over, now).await.unwrap();
    assert_eq!(server.alerts().await, Vec::<Value>::new());
}
