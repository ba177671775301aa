//! Who may connect, and whom we trust.

use std::path::Path;

use keyfleet_fabric::bus::GatewayBus as _;
use keyfleet_fabric::bus::nats::{Login, Nats, NatsOptions, NatsTls};

use crate::server::Server;
use crate::world::{connect_with, lead, report};

#[tokio::test]
async fn every_way_to_log_in_works() {
    let pair = nkeys::KeyPair::new_user();
    let password = Login::Password { user: "me".to_owned(), password: "s3cret".to_owned() };
    let ways = [
        ("authorization { user: me, password: s3cret }".to_owned(), password),
        ("authorization { token: t0ken }".to_owned(), Login::Token("t0ken".to_owned())),
        (
            format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key()),
            Login::Nkey(pair.seed().unwrap()),
        ),
    ];
    for (config, login) in ways {
        let server = Server::with(&config);
        let nats = connect_with(NatsOptions { login, ..NatsOptions::new(vec![server.url()]) }).await;
        lead(&mut nats.leader()).await;
        nats.gateway().report(&report("a", 1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_password_is_reported_without_it() {
    let server = Server::with("authorization { user: me, password: right }");
    let url = server.url().replace("nats://", "nats://me:s3cret@");
    let nats = Nats::connect(NatsOptions::new(vec![url])).await.unwrap();
    let Err(error) = nats.ready().await else { panic!("it got in") };
    let text = format!("{error} {nats:?}");
    assert!(text.contains("authorization violation"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_only_and_trusts_ours() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    authority_and_certificates(folder.path());
    let config =
        "tls { cert_file: './server.pem', key_file: './server.key', ca_file: './ca.pem', verify: true }";
    let config = config.replace("./", &format!("{}/", folder.path().display()));
    let server = Server::with(&config);
    let trusting = NatsTls {
        ca_file: Some(file("ca.pem")),
        client: Some((file("client.pem"), file("client.key"))),
        ..NatsTls::default()
    };
    let with = |tls| NatsOptions { tls, ..NatsOptions::new(vec![server.url()]) };
    let nats = connect_with(with(trusting.clone())).await;
    lead(&mut nats.leader()).await;
    nats.gateway().report(&report("a", 1)).await.unwrap();
    for wrong in [NatsTls { client: None, ..trusting.clone() }, NatsTls { ca_file: None, ..trusting }] {
        let stranger = Nats::connect(with(wrong)).await.unwrap();
        assert!(stranger.ready().await.is_err());
    }
}

/// An authority, and certificates by it for a server at 127.0.0.1 and for a client.
fn authority_and_certificates(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
    let authority = rcgen::Issuer::new(params, key);
    for (name, usage) in [
        ("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth),
        ("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}
