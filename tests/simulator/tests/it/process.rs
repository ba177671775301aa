//! The binary says where it listens, and refuses a world with a field that it does not know.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

#[test]
fn the_process_prints_its_address_when_it_is_ready() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_simulator"))
        .args(["--demo", "--latency", "zero", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}"));
    let reached = std::net::TcpStream::connect(address);
    let healthy = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
        command.args(["healthcheck", "--listen", address]).output().unwrap().status.success()
    };
    let while_it_runs = healthy();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(reached.is_ok(), "{address}");
    assert!(while_it_runs && !healthy(), "{address}");
}

#[test]
fn a_world_with_an_unknown_field_is_refused_by_name() {
    let mut file = std::env::temp_dir();
    file.push(format!("keyfleet-simulator-{}.json", std::process::id()));
    std::fs::File::create(&file).unwrap().write_all(b"{\"kees\": []}").unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_simulator")).arg("--world").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && said.contains("unknown field `kees`"), "{said}");
}
