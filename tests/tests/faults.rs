//! Injects every kind of fault of every service into both functions, and prints a table of the outcomes: see
//! `tests::faults`. `make faults` covers every status, and repeats faults hundreds of times.
#![expect(clippy::print_stdout, reason = "the table is for readers of the test's output")]

use anyhow::Result;
use futures_util::future::try_join_all;
use tests::faults::{Coverage, Lambda, REPRESENTATIVE, Runner, Service, Share, Table};

/// Tests each service in one or several environments of its own, concurrently, because most faults are timeouts.
async fn assert_survives(lambda: Lambda, services: &[(Service, usize)]) -> Result<()> {
    let shares =
        services.iter().flat_map(|(service, of)| (0..*of).map(move |index| (*service, Share { index, of: *of })));
    let tables = try_join_all(shares.map(async |(service, share)| {
        Runner::start(lambda).await?.run_all(&[service], Coverage::Kinds, share, |_| ()).await
    }));
    let table = Table { rows: tables.await?.into_iter().flat_map(|table| table.rows).collect() };
    println!("{table}");
    assert!(table.is_clean() && table.rows.len() > 50, "{table}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_survives_every_fault() -> Result<()> {
    assert_survives(Lambda::Verify, &Service::ALL.map(|service| (service, 1))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_survives_every_fault_of_aws_and_redis() -> Result<()> {
    // Without its cache, a run takes three seconds longer.
    let services = [(Service::Ssm, 1), (Service::ElastiCache, 3), (Service::Redis, 2), (Service::S3, 2)];
    assert_survives(Lambda::Mirror, &services).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_survives_every_fault_of_novi_and_mailman() -> Result<()> {
    assert_survives(Lambda::Mirror, &[(Service::Novi, 1), (Service::Mailman, 1)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_faults_leak_no_resources() -> Result<()> {
    try_join_all([Lambda::Verify, Lambda::Mirror].map(async |lambda| {
        let mut runner = Runner::start(lambda).await?;
        for (_, service, fault) in REPRESENTATIVE.into_iter().filter(|(target, ..)| *target == lambda) {
            println!("{}", runner.repeat(service, fault, 10).await?);
        }
        Ok(())
    }))
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_correct_while_faults_come_and_go() -> Result<()> {
    println!("{}", Runner::start(Lambda::Verify).await?.run_requests(1_000).await?);
    Ok(())
}
