//! The few words of HTTP that the benchmark itself speaks.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use keyfleet_bench::{MODEL, PATH};

/// How long a process may take to serve.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Between two attempts: short against what is measured, and long enough not to steal its time.
const PAUSE: Duration = Duration::from_micros(200);
/// How long one exchange may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);

/// Waits until something listens.
pub(crate) fn until_listening(address: SocketAddr) -> io::Result<()> {
    until(|| TcpStream::connect(address).map(|_| true))
}

/// Waits until a proxy answers its first request.
pub(crate) fn until_answering(address: SocketAddr, bearer: &str) -> io::Result<()> {
    let body = format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"Hello"}}]}}"#);
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {bearer}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    until(|| Ok(exchange(address, &request)?.starts_with(b"HTTP/1.1 200 ")))
}

/// The body of a resource, which has to be there. HTTP 1.0 knows no framing but the end of the connection.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut answer = exchange(address, &format!("GET {path} HTTP/1.0\r\n\r\n"))?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
    match body.filter(|_| answer.get(8..13) == Some(b" 200 ")) {
        Some(at) => Ok(answer.split_off(at)),
        None => Err(io::Error::other(format!("{path}: {}", String::from_utf8_lossy(&answer)))),
    }
}

fn exchange(address: SocketAddr, request: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(EXCHANGE_LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Tries until it is true. Errors are part of a start; the last one says why there was none.
fn until(mut attempt: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let last = match attempt() {
            Ok(true) => return Ok(()),
            Ok(false) => "it does not answer with success".to_owned(),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no start within a minute: {last}")));
        }
        thread::sleep(PAUSE);
    }
}
