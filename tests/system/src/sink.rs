//! A webhook that keeps what it is sent, and answers as a scenario wants.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A webhook at a port of this machine.
#[derive(Debug)]
pub struct Sink {
    port: u16,
    got: Arc<Mutex<Vec<Message>>>,
    /// The status of answers; 0: none is given.
    answers: watch::Sender<u16>,
    task: AbortHandle,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// What the sender calls the message.
    pub id: String,
    /// Its body.
    pub body: Value,
    /// The status that it was answered with; 0: it was not.
    pub status: u16,
}

impl Sink {
    /// Starts one that accepts everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port for the sink");
        let port = listener.local_addr().expect("an address").port();
        let (answers, answer) = watch::channel(200);
        let got = Arc::<Mutex<Vec<Message>>>::default();
        let kept = got.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, kept.clone(), answer.clone()));
            }
        });
        Self { port, got, answers, task: task.abort_handle() }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Answers with this from now on; 0 leaves the sender waiting.
    pub fn answer(&self, status: u16) {
        self.answers.send_replace(status);
    }

    /// What it has got, in order.
    pub fn messages(&self) -> Vec<Message> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, got: Arc<Mutex<Vec<Message>>>, mut answer: watch::Receiver<u16>) {
    let mut wire = BufReader::new(stream);
    while let Some((id, body)) = request(&mut wire).await {
        let status = *answer.borrow_and_update();
        let message = Message { id, body, status };
        got.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        if status == 0 {
            // Until the sender goes away.
            let _ = wire.read_u8().await;
            return;
        }
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
        if wire.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The next request; `None` when there is none.
async fn request(wire: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let (mut id, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        wire.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("webhook-id") => value.clone_into(&mut id),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    wire.read_exact(&mut body).await.ok()?;
    Some((id, serde_json::from_slice(&body).unwrap_or_default()))
}
