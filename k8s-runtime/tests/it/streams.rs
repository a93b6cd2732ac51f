//! Output, input, terminals: logs, exec, attach, port-forward.

use std::{sync::Arc, time::Duration};

use k8s_runtime::{ExecRequest, Runtime, TerminalSize};
use libtest_mimic::Failed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Fixture, expect, launch, once, read_all, wait_end};

crate::tests![
    log_format_and_rotation,
    much_output_arrives_whole,
    much_output_at_once_stays_within_the_logs_limit,
    exec_plain,
    exec_with_input,
    exec_with_terminal,
    exec_errors,
    exec_timeout_and_drop_kill,
    exec_does_not_outlive_its_container,
    exec_in_shared_process_namespace,
    attach_output_and_input,
    attach_terminal,
    closed_outputs_cost_nothing,
    port_forward,
];

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest { command: command.iter().map(|s| (*s).to_owned()).collect(), ..ExecRequest::default() }
}

async fn log_format_and_rotation(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let mut spec = f.spec("a", "echo one; read x; echo two; printf rest");
    spec.stdin = true;
    let id = launch(&runtime, &sandbox.id, &spec).await?;
    while f.log("a").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::rename(&spec.log_path, f.dir.join("logs/a.log.1"))?;
    runtime.reopen_log(&id).await?;
    let mut attached = runtime.attach(&id).await?;
    if let Some(mut stdin) = attached.stdin.take() {
        stdin.write_all(b"go\n").await?;
    }
    expect(wait_end(&runtime, &id).await?.code, 0)?;
    let text = std::fs::read_to_string(&spec.log_path)?;
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
    expect(
        lines.iter().map(|l| l[1..].join(" ")).collect::<Vec<_>>(),
        vec!["stdout F two".into(), "stdout P rest".into()],
    )?;
    for line in &lines {
        // 2026-01-02T03:04:05.123456789Z
        expect((line[0].len(), line[0].ends_with('Z')), (30, true))?;
    }
    runtime.remove(&id).await?;
    runtime.remove_sandbox(&sandbox.id).await?;
    expect(f.dir.join("logs/a.log.1").exists(), true)
}

async fn much_output_arrives_whole(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = runtime.create(&sandbox.id, &f.spec("a", "seq 1 100000")).await?;
    let attached = runtime.attach(&id).await?;
    runtime.start(&id).await?;
    let text = read_all(attached.stdout).await?;
    expect(wait_end(&runtime, &id).await?.code, 0)?;
    let want: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    expect(text == want, true)?;
    let log: String = f.log("a").iter().map(|l| format!("{}\n", l.trim_start_matches("stdout:"))).collect();
    expect(log == want, true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn much_output_at_once_stays_within_the_logs_limit(f: Arc<Fixture>) -> Result<(), Failed> {
    let mut spec = f.spec("a", "seq 1 2000000");
    (spec.log_max_bytes, spec.log_max_files) = (1 << 20, 3);
    let directory = spec.log_path.parent().ok_or("no directory")?.to_owned();
    let (ended, _) = once(&f, &spec).await?;
    expect(ended.code, 0)?;
    let name = spec.log_path.file_name().and_then(|n| n.to_str()).ok_or("no name")?.to_owned();
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&name) {
            sizes.push(entry.metadata()?.len());
        }
    }
    // A read of 16 KiB makes at most 16,384 entries of some 40 bytes.
    if sizes.len() != 3 || sizes.iter().any(|size| *size > 2 << 20) {
        return Err(format!("{sizes:?}").into());
    }
    Ok(())
}

async fn exec_plain(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let mut spec = f.spec("a", "sleep 1000");
    spec.env = vec![("MINE".into(), "1".into())];
    let id = launch(&runtime, &sandbox.id, &spec).await?;
    let script = "echo $MINE $$; echo err >&2; hostname; ps | grep -c '[s]leep 1000'; exit 3";
    let attached = runtime.exec(&id, &request(&["sh", "-c", script])).await?;
    let (out, err) = (read_all(attached.stdout).await?, read_all(attached.stderr).await?);
    expect(attached.exit.await?, 3)?;
    let lines: Vec<&str> = out.lines().collect();
    expect((lines[0].starts_with("1 "), lines[1], lines[2], err.as_str()), (true, "my-pod", "1", "err\n"))?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn exec_with_input(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000")).await?;
    let mut attached = runtime.exec(&id, &ExecRequest { stdin: true, ..request(&["wc", "-c"]) }).await?;
    let bytes = vec![b'x'; 300_000];
    if let Some(mut stdin) = attached.stdin.take() {
        stdin.write_all(&bytes).await?;
    }
    expect(read_all(attached.stdout).await?.trim(), "300000")?;
    expect(attached.exit.await?, 0)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn exec_with_terminal(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000")).await?;
    let command = request(&["sh", "-c", "tty; read line; stty size; echo got $line $TERM; exit 5"]);
    let mut attached = runtime.exec(&id, &ExecRequest { stdin: true, tty: true, ..command }).await?;
    expect(attached.stderr.is_none(), true)?;
    if let Some(resize) = &attached.resize {
        resize.send(TerminalSize { width: 123, height: 45 }).await?;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut stdin = attached.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"hello\n").await?;
    let out = read_all(attached.stdout.take()).await?;
    expect(attached.exit.await?, 5)?;
    expect(out.as_str(), "/dev/pts/0\r\nhello\r\n45 123\r\ngot hello xterm\r\n")?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn exec_errors(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000")).await?;
    let error =
        runtime.exec(&id, &request(&["nothing"])).await.err().map(|e| e.to_string()).unwrap_or_default();
    expect(error.contains(r#"exec: "nothing": executable file not found in $PATH"#), true)?;
    runtime.stop(&id, Duration::ZERO).await?;
    let error = runtime.exec(&id, &request(&["true"])).await.err().map(|e| e.to_string()).unwrap_or_default();
    expect(error.ends_with("is not running"), true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn exec_timeout_and_drop_kill(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000")).await?;
    let limited = ExecRequest { timeout: Some(Duration::from_millis(100)), ..request(&["sleep", "500"]) };
    let attached = runtime.exec(&id, &limited).await?;
    let error = attached.exit.await.err().map(|e| e.to_string()).unwrap_or_default();
    expect(error.contains("timed out"), true)?;
    drop(runtime.exec(&id, &request(&["sleep", "600"])).await?);
    for attempt in 0.. {
        let attached = runtime.exec(&id, &request(&["sh", "-c", "ps | grep -c 'sleep [56]00'"])).await?;
        if read_all(attached.stdout).await?.trim() == "0" {
            break;
        }
        if attempt == 100 {
            return Err("commands live on".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn exec_does_not_outlive_its_container(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    for shared in [false, true] {
        let mut spec = f.sandbox_spec();
        spec.share_process_namespace = shared;
        let sandbox = runtime.run_sandbox(&spec).await?;
        let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000")).await?;
        let commands = [
            runtime.exec(&id, &request(&["sleep", "500"])).await?,
            runtime.exec(&id, &request(&["sleep", "600"])).await?,
        ];
        runtime.remove_sandbox(&sandbox.id).await?;
        for attached in commands {
            expect(attached.exit.await?, 137)?;
        }
    }
    Ok(())
}

async fn exec_in_shared_process_namespace(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut sandbox = f.sandbox_spec();
    sandbox.share_process_namespace = true;
    let sandbox = runtime.run_sandbox(&sandbox).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "exec sleep 1000")).await?;
    let attached = runtime.exec(&id, &request(&["sh", "-c", "ps | grep -c pause; cat /proc/1/comm"])).await?;
    let out = read_all(attached.stdout).await?;
    expect(out.lines().next_back(), Some("pause"))?;
    expect(attached.exit.await?, 0)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn attach_output_and_input(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let mut spec = f.spec("a", "cat; echo ended");
    (spec.stdin, spec.stdin_once) = (true, true);
    let id = launch(&runtime, &sandbox.id, &spec).await?;
    let mut first = runtime.attach(&id).await?;
    let second = runtime.attach(&id).await?;
    expect((first.stdin.is_some(), second.stdin.is_some()), (true, false))?;
    let mut stdin = first.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"line\n").await?;
    drop(stdin);
    let want = "line\nended\n";
    expect(read_all(first.stdout).await?.as_str(), want)?;
    expect(read_all(second.stdout).await?.as_str(), want)?;
    expect((first.exit.await?, second.exit.await?), (0, 0))?;
    expect(f.log("a"), vec!["stdout:line".to_owned(), "stdout:ended".to_owned()])?;
    runtime.remove_sandbox(&sandbox.id).await?;

    // Without stdin_once the stream stays open when a client leaves.
    let sandbox = f.sandbox(&runtime).await?;
    let mut spec = f.spec("b", "cat");
    spec.stdin = true;
    let id = launch(&runtime, &sandbox.id, &spec).await?;
    for text in ["one\n", "two\n"] {
        let mut client = runtime.attach(&id).await?;
        let mut stdin = client.stdin.take().ok_or("no stdin")?;
        stdin.write_all(text.as_bytes()).await?;
        let mut got = vec![0; text.len()];
        client.stdout.take().ok_or("no stdout")?.read_exact(&mut got).await?;
        expect(got.as_slice(), text.as_bytes())?;
    }
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn attach_terminal(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let mut spec = f.spec("a", "read line; stty size; echo got $line");
    (spec.stdin, spec.tty) = (true, true);
    let id = launch(&runtime, &sandbox.id, &spec).await?;
    let mut client = runtime.attach(&id).await?;
    let resize = client.resize.take().ok_or("no resize")?;
    resize.send(TerminalSize { width: 99, height: 11 }).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.stdin.take().ok_or("no stdin")?.write_all(b"x\n").await?;
    expect(read_all(client.stdout).await?.as_str(), "x\r\n11 99\r\ngot x\r\n")?;
    expect(client.exit.await?, 0)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn port_forward(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    launch(&runtime, &sandbox.id, &f.spec("a", "nc -l -p 8080 -e cat")).await?;
    for attempt in 0.. {
        match runtime.port_forward(&sandbox.id, 8080).await {
            Ok(mut stream) => {
                stream.write_all(b"ping").await?;
                let mut got = [0; 4];
                stream.read_exact(&mut got).await?;
                expect(&got, b"ping")?;
                break;
            }
            Err(error) if attempt == 100 => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    let error = runtime.port_forward(&sandbox.id, 1).await.err().map(|e| e.to_string()).unwrap_or_default();
    expect(error.contains("refused"), true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

/// A program that closes its terminal or pipes and lives on must not make its shim spin.
async fn closed_outputs_cost_nothing(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    for tty in [false, true] {
        let sandbox = f.sandbox(&runtime).await?;
        let mut spec = f.spec("a", "exec sleep 1000 <&- >&- 2>&-");
        spec.tty = tty;
        launch(&runtime, &sandbox.id, &spec).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let used = || -> Result<u64, Failed> { Ok(crate::life::shims_cpu_ticks(&f)) };
        let before = used()?;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let spent = used()? - before;
        expect(spent < 10, true)?;
        runtime.remove_sandbox(&sandbox.id).await?;
    }
    Ok(())
}
