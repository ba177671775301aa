//! Messages about alerts are delivered while the leader is busy.

use keyfleet_core::alert::Recipient;
use keyfleet_core::message::{Beat, Delta};
use keyfleet_fabric::bus::local::LocalLeader;
use keyfleet_service::config::{Receiver, Secret, Wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::status::Pulse;

/// Takes every message that it is sent.
async fn take_all(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut message = Vec::new();
        // The body is one object.
        while !message.ends_with(b"}") {
            if stream.read_buf(&mut message).await.unwrap() == 0 {
                break;
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    }
}

/// A way to gateways on which there is always more to read, from when that is wanted until a message is delivered.
#[derive(Debug)]
struct Flooded {
    inner: LocalLeader,
    pulse: watch::Receiver<Pulse>,
    begins: Arc<AtomicBool>,
    ends: std::time::Instant,
}

fn delivered(pulse: &Pulse) -> bool {
    pulse.alert_deliveries.get(&("ours".to_owned(), "delivered")) == Some(&1)
}

#[async_trait]
impl LeaderBus for Flooded {
    async fn lead(&mut self, stream: &str, cursor: u64) -> Result<Position, Unreachable> {
        self.inner.lead(stream, cursor).await
    }

    async fn next(&mut self) -> Told {
        if self.begins.load(Ordering::Relaxed) && !delivered(&self.pulse.borrow()) {
            assert!(self.ends > std::time::Instant::now(), "what was delivered is not noted");
            return Told::Unread { position: 0 };
        }
        self.inner.next().await
    }

    async fn publish(&self, delta: &Delta) -> Result<(), Unreachable> {
        self.inner.publish(delta).await
    }

    async fn beat(&self, beat: Beat) -> Result<(), Unreachable> {
        self.inner.beat(beat).await
    }

    async fn resign(&mut self) {
        self.inner.resign().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_delivered_is_noted_however_many_reports_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Secret::new(format!("http://{}/", listener.local_addr().unwrap()));
    let receiver = tokio::spawn(take_all(listener));
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway: _gone, key, config, verdicts, .. } = fixture(&store);
    config.send_modify(|config| {
        let alerts = &mut Arc::make_mut(config).alerts;
        alerts.policy.group_wait = Duration::ZERO;
        alerts.policy.receivers = vec![Recipient::named("ours")];
        let wire = Wire::Webhook { url, keys: Vec::new() };
        alerts.receivers = vec![Receiver { name: "ours".to_owned(), wire, proxy_url: None }];
    });
    let mut pulse = driver.post.pulse().subscribe();
    let (gateway, inner) = fabric(ASK_TIMEOUT);
    let begins = Arc::new(AtomicBool::new(false));
    let ends = std::time::Instant::now() + SOON;
    driver.bus = Box::new(Flooded { inner, pulse: pulse.clone(), begins: begins.clone(), ends });
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        let outcome = Some(Cause::InvalidKey.outcome());
        verdicts.send(Verdict { key: key.clone(), outcome, draw: 0 }).await.unwrap();
        begins.store(true, Ordering::Relaxed);
        pulse.wait_for(delivered).await.unwrap();
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    receiver.abort();
}
