//! What compose.yaml says holds together: with itself, the programs, the files that it mounts, and `.env.example`.

use std::collections::BTreeSet;
use std::fs;

use keyfleet_simulator::World;
use keyfleet_tests::Program;
use keyfleet_tests::helm::objects;
use serde_json::Value;
use tempfile::TempDir;

use super::{docker_compose, rendered, services, text, texts, tool, whole};

const ALWAYS: [&str; 5] = ["balancer", "coordinator", "gateway", "nats", "redis"];
const SECRETS: &str = "/run/secrets/";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The names that follow `mark` wherever it is.
fn named<'a>(text: &'a str, mark: &str) -> BTreeSet<&'a str> {
    let name = |rest: &'a str| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
    text.split(mark).skip(1).filter_map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_profile_has_its_services() {
    for (profile, more) in [
        (None, &[][..]),
        (Some("demo"), &["simulator"]),
        (Some("observability"), &["collector", "grafana", "jaeger", "prometheus"]),
        (Some("smoke"), &["smoke"]),
        (Some("tools"), &["redis-ui"]),
    ] {
        let file = rendered(profile.as_slice(), &[]);
        let found: BTreeSet<&str> = services(&file).map(|(name, _)| name).collect();
        assert_eq!(found, ALWAYS.iter().chain(more).copied().collect(), "{profile:?}");
    }
    let dev = super::path("compose/dev.yaml");
    docker_compose(&["-f", dev.to_str().expect("a path"), "--profile", "demo", "config", "-q"], &[]);
}

#[test]
fn any_number_of_gateways_can_run() {
    let file = whole();
    for (name, service) in services(&file) {
        assert!(service["container_name"].is_null(), "{name} can be there once only");
        let image = service["image"].as_str().expect("an image");
        let (_, tag) = image.rsplit_once(':').unwrap_or_default();
        assert!(tag.starts_with(|c: char| c.is_ascii_digit() || c == 'v'), "{image} is not a version");
        assert!(!image.starts_with("ghcr.io/keyfleet/") || tag == VERSION, "{image} is another version");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name} is open to everybody");
            assert!(
                !["gateway", "coordinator", "nats", "redis"].contains(&name),
                "{name} takes a port of the host"
            );
        }
        let waits = service["depends_on"].as_object().into_iter().flatten();
        for (other, condition) in waits {
            let checked = condition["condition"] == "service_healthy";
            let has_check = file["services"][other]["healthcheck"].is_object();
            assert!(checked == has_check, "{name} waits for {other}: {condition}");
        }
    }
    assert_eq!(file["services"]["gateway"]["deploy"]["replicas"], 3);
    assert_eq!(file["services"]["coordinator"]["deploy"]["replicas"], 2);
    let scaled =
        docker_compose(&["--profile", "demo", "config", "--format", "json"], &[("KEYFLEET_PORT", "80")]);
    let scaled: Value = serde_json::from_str(&scaled).expect("JSON");
    assert_eq!(scaled["services"]["balancer"]["ports"][0]["published"], "80");
}

/// Streams may go on for as long as a gateway lets them, wherever they pass.
#[tokio::test]
async fn streams_have_time_to_end() {
    let file = whole();
    let printed = Program::new().run(&["print-config"]).await.said;
    let drain = printed.lines().find_map(|line| line.trim().strip_prefix("drain_timeout_secs: "));
    let drain = drain.and_then(|rest| rest.split(' ').next()).expect("a drain time");
    assert!(text("compose/haproxy/haproxy.cfg").contains(&format!("hard-stop-after {drain}s")), "{drain}");
    let seconds: u64 = drain.parse().expect("seconds");
    // As long as the units allow for the rest.
    let grace = format!("{}m{}s", (seconds + 30) / 60, (seconds + 30) % 60);
    for name in ["balancer", "gateway"] {
        assert_eq!(file["services"][name]["stop_grace_period"], grace.as_str(), "{name}");
    }
}

/// Whoever knows one way to run Keyfleet finds the same ports and servers in every other.
#[test]
fn ports_and_servers_are_those_of_the_chart() {
    let (file, values) = (whole(), &objects(&text("charts/keyfleet/values.yaml"))[0]);
    let server = &values["config"]["server"];
    let balancer = &file["services"]["balancer"]["ports"][0];
    assert_eq!(balancer["target"], server["port"]);
    assert_eq!(balancer["published"], server["port"].to_string().as_str());
    let ops = &file["services"]["gateway"]["environment"]["KEYFLEET__SERVER__OPS_PORT"];
    assert_eq!(*ops, server["ops_port"].to_string().as_str());
    let simulator = texts(&file["services"]["simulator"]["command"]);
    let port = simulator[1].rsplit(':').next().expect("a port");
    let chart = text("charts/keyfleet/templates/evaluation/simulator.yaml");
    assert!(chart.contains(&format!("containerPort: {port}\n")), "{chart}");
    for (script, port) in [("run", format!("127.0.0.1:{port}")), ("cluster", port.to_owned())] {
        assert!(text(&format!("scripts/{script}")).contains(&format!("\nSIMULATOR={port}\n")), "{script}");
    }
    for (name, prefix) in [("nats", "library/"), ("redis", "")] {
        let image = format!("{prefix}{}", file["services"][name]["image"].as_str().expect("an image"));
        let of = &values[name]["image"];
        let [repository, tag] = ["repository", "tag"].map(|part| of[part].as_str().expect("a text"));
        assert_eq!(image, format!("{repository}:{tag}"));
    }
}

/// The demo has no clients and lets nobody's token pass for one; with keys of one's own there is a client.
#[test]
fn the_smoke_test_brings_a_token_where_one_is_needed() {
    let token = |variables: &[(&str, &str)]| {
        let smoke = &rendered(&["smoke"], variables)["services"]["smoke"];
        assert_eq!(smoke["restart"], "no");
        // `run` starts what a service depends on, and as many as the file says: `--scale` would be undone.
        assert!(smoke["depends_on"].is_null());
        smoke["environment"]["KEYFLEET_SMOKE_TOKEN_FILE"].as_str().expect("a text").to_owned()
    };
    assert_eq!(token(&[]), "");
    assert!(!text("compose/demo/config/config.yaml").contains("clients:"));
    let file = token(&[("KEYFLEET_CONFIG", "./config"), ("KEYFLEET_SECRETS", "./secrets")]);
    let config = text("compose/config/config.yaml");
    assert!(
        file.starts_with(SECRETS) && config.contains(&format!("token_file: {file} ")),
        "{file}: {config}"
    );
}

/// Whether a gateway gets requests is what it says itself, where it says so.
#[test]
fn the_balancer_asks_gateways_whether_they_are_ready() {
    let (file, config) = (whole(), text("compose/haproxy/haproxy.cfg"));
    let ops = file["services"]["gateway"]["environment"]["KEYFLEET__SERVER__OPS_PORT"].as_str();
    assert!(config.contains(&format!(" check port {} ", ops.expect("a port"))), "{config}");
    assert!(config.contains("meth GET uri /health/ready "), "{config}");
}

#[test]
fn every_file_that_is_mounted_exists() {
    let file = whole();
    for (name, service) in services(&file) {
        for volume in service["volumes"].as_array().into_iter().flatten().filter(|v| v["type"] == "bind") {
            let source = volume["source"].as_str().expect("a source");
            assert!(fs::exists(source).expect("a path"), "{name} mounts {source}");
            assert!(volume["read_only"] == true, "{name} may write {source}");
        }
    }
}

/// Whatever names a secret has it, and whoever sets up secrets of their own is told of each.
#[test]
fn every_secret_is_declared_and_explained() {
    let (file, example) = (whole(), text("compose/.env.example"));
    let declared = file["secrets"].as_object().expect("secrets");
    for (name, secret) in declared {
        let path = secret["file"].as_str().expect("a file");
        assert!(!fs::read_to_string(path).expect(name).trim().is_empty(), "{path}");
        assert!(example.contains(name.as_str()), ".env.example does not tell of {name}");
    }
    for (name, service) in services(&file) {
        let mut said = service.to_string();
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume["source"].as_str().unwrap_or_default();
            said += &fs::read_to_string(format!("{source}/config.yaml")).unwrap_or_default();
        }
        if service["environment"]["CONFIG_PATH"].is_string() {
            said += &text("compose/config/config.yaml");
        }
        let granted = service["secrets"].as_array().into_iter().flatten();
        let granted: BTreeSet<&str> = granted.filter_map(|secret| secret["source"].as_str()).collect();
        assert_eq!(named(&said, SECRETS), granted, "{name} reads other secrets than it gets");
        assert!(granted.iter().all(|secret| declared.contains_key(*secret)), "{name}");
    }
    assert!(example.contains(&format!("#KEYFLEET_VERSION={VERSION}\n")), "{example}");
    let ours = named(&text("compose/compose.yaml"), "${").into_iter().map(str::to_owned).collect::<Vec<_>>();
    for variable in ours {
        assert!(example.contains(&format!("#{variable}=")), ".env.example does not tell of {variable}");
    }
}

/// Of every variable, and of both configurations that are here.
#[tokio::test]
async fn every_variable_is_one_that_the_programs_accept() {
    let (file, readme) = (whole(), text("README.md"));
    let secrets = TempDir::new().expect("a folder");
    for name in file["secrets"].as_object().expect("secrets").keys() {
        fs::write(secrets.path().join(name), format!("{name}-of-the-test")).expect("a secret");
    }
    let place = format!("{}/", secrets.path().display());
    for config in ["compose/demo/config/config.yaml", "compose/config/config.yaml"] {
        let config = text(config).replace(SECRETS, &place);
        for name in ["gateway", "coordinator"] {
            let mut program = Program::new().file("config.yaml", &config);
            let variables = file["services"][name]["environment"].as_object().expect("an environment");
            for (variable, value) in variables.iter().filter(|(variable, _)| *variable != "CONFIG_PATH") {
                let known = variable.starts_with("KEYFLEET__") || readme.contains(&format!("`{variable}`"));
                assert!(known, "{variable} is nothing to {name}");
                let value = value.as_str().expect("a text").replace(SECRETS, &place);
                program = program.env(variable, &value);
            }
            let ended = program.run(&["check-config"]).await;
            assert_eq!(ended.said.trim(), "the configuration is good", "{name}: {}", ended.said);
        }
    }
}

#[test]
fn the_demo_has_the_keys_of_the_simulator() {
    let config = text("compose/demo/config/config.yaml");
    let world = World::demo();
    assert!(config.contains(&world.gateway_config("http://simulator:4809/v1beta/openai/")), "{config}");
    assert!(
        world.projects.iter().all(|project| project.limits[0].rpm == Some(10)) && config.contains("rpm: 10")
    );
}

/// Prometheus takes its file, and asks the ports that answer; Grafana finds what it is told of.
#[test]
fn prometheus_and_grafana_find_everything() {
    let file = whole();
    let folder = TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("rules")).expect("a folder");
    let mounts = file["services"]["prometheus"]["volumes"].as_array().expect("mounts");
    for mount in mounts.iter().filter(|mount| mount["type"] == "bind") {
        let [source, target] = ["source", "target"].map(|side| mount[side].as_str().expect("a path"));
        let target = target.strip_prefix("/etc/prometheus/").expect("its folder");
        fs::copy(source, folder.path().join(target)).expect("a copy");
    }
    let config = folder.path().join("prometheus.yml");
    let output = tool("KEYFLEET_TEST_PROMTOOL").args(["check", "config"]).arg(&config).output();
    let output = output.expect("promtool runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 rule files found"), "{said}");
    let config = text("compose/prometheus/prometheus.yml");
    let ops = file["services"]["gateway"]["environment"]["KEYFLEET__SERVER__OPS_PORT"].as_str();
    for (name, port) in [("gateway", ops.expect("a port")), ("coordinator", "4807")] {
        assert!(config.contains(&format!("{{names: [{name}], type: A, port: {port},")), "{name}: {config}");
    }

    let sources = text("compose/grafana/datasources/keyfleet.yaml");
    for host in named(&sources, "http://") {
        assert!(file["services"][host].is_object(), "no service {host}");
    }
    let provider = text("compose/grafana/dashboards/keyfleet.yaml");
    let (_, place) = provider.split_once("path: ").expect("a path");
    let grafana = &file["services"]["grafana"];
    let home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().expect("a path");
    let mounts = grafana["volumes"].as_array().expect("mounts");
    let mount = mounts.iter().find(|mount| mount["target"] == place.trim()).expect("the dashboards");
    let home = home.strip_prefix(place.trim()).expect("one of the dashboards");
    let dashboard = fs::read_to_string(format!("{}{home}", mount["source"].as_str().expect("a path")));
    let dashboard: Value = serde_json::from_str(&dashboard.expect("the dashboard")).expect("JSON");
    assert_eq!(dashboard["uid"], "keyfleet");
}

/// A collector without a backend, or one that a gateway cannot name, keeps nothing.
#[test]
fn traces_have_somewhere_to_go() {
    let file = rendered(&["observability"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")]);
    let services = &file["services"];
    assert_eq!(services["gateway"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://collector:4318");
    let backend = services["collector"]["environment"]["BACKEND_ENDPOINT"].as_str().expect("a backend");
    assert!(services[backend.split(':').next().unwrap_or_default()].is_object(), "no service {backend}");
    let config = text("compose/otel/tail-sampling.yaml");
    assert!(config.contains("${env:BACKEND_ENDPOINT}"), "{config}");
    let command = texts(&services["collector"]["command"]).join(" ");
    let mounts = services["collector"]["volumes"].as_array().expect("mounts");
    assert!(
        mounts.iter().any(|mount| command.contains(mount["target"].as_str().unwrap_or("-"))),
        "{command}"
    );
}
