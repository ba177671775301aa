//! Messages about alerts are delivered while the leader is busy.

use keyfleet_core::alert::Recipient;
use keyfleet_service::config::{Receiver, Secret, Wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

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

#[tokio::test]
async fn what_was_delivered_is_noted_however_many_reports_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Secret::new(format!("http://{}/", listener.local_addr().unwrap()));
    let receiver = tokio::spawn(take_all(listener));
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config, verdicts } = fixture(&store);
    config.send_modify(|config| {
        let alerts = &mut Arc::make_mut(config).alerts;
        alerts.policy.group_wait = Duration::ZERO;
        alerts.policy.receivers = vec![Recipient::named("ours")];
        let wire = Wire::Webhook { url, keys: Vec::new() };
        alerts.receivers = vec![Receiver { name: "ours".to_owned(), wire, proxy_url: None }];
    });
    let pulse = driver.post.pulse().subscribe();
    let delivered = || pulse.borrow().alert_deliveries.get(&("ours".to_owned(), "delivered")) == Some(&1);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        let outcome = Some(Cause::InvalidKey.outcome());
        verdicts.send(Verdict { key: key.clone(), outcome, draw: 0 }).await.unwrap();
        let mut seq = 0;
        while !delivered() {
            // Until there is no room.
            while let Ok(()) =
                gateway.report(&Report { seq: seq + 1, ..report(&KeyId::new("another")) }).await
            {
                seq += 1;
            }
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    receiver.abort();
}
