//! The command `healthcheck`: for containers, which have no curl.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

/// Asks a program on this machine, which listens at this address, for `/health`; the exit code is the answer.
pub fn healthcheck(program: &str, host: &str, port: u16) -> ExitCode {
    let host = reachable(host);
    match ask_health(host, port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no {program} answers on {host}:{port}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where a program on this machine is reached that listens at this address.
pub fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    }
}

fn ask_health(host: &str, port: u16) -> io::Result<()> {
    let limit = Some(Duration::from_secs(3));
    let mut stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if status.ends_with(b"200") { Ok(()) } else { Err(io::Error::other("it is not healthy")) }
}
