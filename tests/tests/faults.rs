//! Every kind of fault of every service, under both functions, with the table
//! of what came of it: see `tests::faults`. `make faults` tries every status,
//! and rounds by the hundred.
#![expect(clippy::print_stdout, reason = "the table is for who reads the test's output")]

use anyhow::Result;
use tests::faults::{Extent, REPRESENTATIVE, Service, Stage, Which};

async fn play(which: Which, of: &[Service]) -> Result<()> {
    let table = Stage::start(which).await?.play(of, Extent::Kinds, |_| ()).await?;
    println!("{table}");
    assert!(table.is_clean() && table.rows.len() > 50, "{table}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_bears_every_kind_of_fault() -> Result<()> {
    play(Which::Verify, &Service::ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_bears_every_kind_of_fault_of_aws_and_redis() -> Result<()> {
    play(Which::Mirror, &[Service::Ssm, Service::ElastiCache, Service::Redis]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_bears_every_kind_of_fault_of_novi_and_mailman() -> Result<()> {
    play(Which::Mirror, &[Service::Novi, Service::Mailman]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_piles_up_however_often_a_fault_comes_back() -> Result<()> {
    for which in [Which::Verify, Which::Mirror] {
        let mut stage = Stage::start(which).await?;
        for (_, service, fault) in REPRESENTATIVE.into_iter().filter(|(of, ..)| *of == which) {
            println!("{}", stage.repeat(service, fault, 10).await?);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_a_wrong_answer_while_faults_come_and_go() -> Result<()> {
    println!("{}", Stage::start(Which::Verify).await?.sequence(1_000).await?);
    Ok(())
}
