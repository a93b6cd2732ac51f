//! The view and the rights of a container.

use std::sync::Arc;

use k8s_runtime::{ContainerState, Mount, Resources, Runtime, RuntimeError, User};
use libtest_mimic::Failed;

use crate::harness::{self, Ended, Fixture, expect, launch, once, wait_end};

crate::tests![
    echo_and_exit_code,
    image_defaults_and_environment,
    start_errors,
    namespaces,
    shared_process_namespace,
    user_and_groups,
    capabilities,
    seccomp,
    readonly_root,
    masked_paths_and_devices,
    mounts,
    memory_limit,
    working_dir_is_made,
    sysctls,
    sysctls_of_the_host_are_refused,
    devices_are_restricted_even_with_sys_admin,
    a_mounted_devices_hierarchy_lifts_no_rule,
    a_mounted_hierarchy_shows_only_the_containers_own_group,
    a_privileged_container_opens_devices_in_a_restricted_pod,
    what_enters_a_container_is_a_sealed_copy,
    masks_do_not_use_the_containers_own_null,
    limits_can_be_read_and_not_changed,
    images_are_mounted_read_only_and_without_programs,
];

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|l| (*l).to_owned()).collect()
}

async fn echo_and_exit_code(f: Arc<Fixture>) -> Result<(), Failed> {
    let (ended, log) = once(&f, &f.spec("a", "echo hello; echo wrong >&2; exit 7")).await?;
    expect(ended, Ended { code: 7, oom: false })?;
    let mut log = log;
    log.sort();
    expect(log, lines(&["stderr:wrong", "stdout:hello"]))
}

async fn image_defaults_and_environment(f: Arc<Fixture>) -> Result<(), Failed> {
    let mut spec = f.spec("a", "");
    spec.command.clear();
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:default command"]))?;
    let mut spec = f.spec("b", "echo $FROM_IMAGE $MINE $HOSTNAME $HOME; echo $PATH | grep -c /bin");
    spec.env = vec![("MINE".into(), "1".into())];
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:yes 1 my-pod /root", "stdout:1"]))
}

async fn start_errors(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    for (command, want) in [
        ("nothing-here", r#"exec: "nothing-here": executable file not found in $PATH"#),
        ("/bin/nothing", r#"exec: "/bin/nothing": stat /bin/nothing: no such file or directory"#),
        ("/bin/unexecutable", r#"exec: "/bin/unexecutable": permission denied"#),
        ("/etc", r#"exec: "/etc": is a directory"#),
        ("/bin/text", r#"exec: "/bin/text": exec format error"#),
    ] {
        let mut spec = f.spec("a", "");
        spec.command = vec![command.into()];
        let result = match runtime.create(&sandbox.id, &spec).await {
            Ok(id) => runtime.start(&id).await,
            Err(error) => Err(error),
        };
        match result {
            Err(RuntimeError::Start(message)) if message.ends_with(want) => {}
            other => return Err(format!("{command}: {other:?}").into()),
        }
    }
    let mut spec = f.spec("a", "");
    spec.image = "not.here/image:1".into();
    match runtime.create(&sandbox.id, &spec).await {
        Err(RuntimeError::NotFound { what: "image", .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn namespaces(f: Arc<Fixture>) -> Result<(), Failed> {
    let script = "echo pid $$; hostname; cat /etc/hostname /etc/resolv.conf; ip -o link | wc -l; ip addr show lo | grep -c 127.0.0.1; ls -d /dev/shm/.; umask";
    let (_, log) = once(&f, &f.spec("a", script)).await?;
    expect(
        log,
        lines(&[
            "stdout:pid 1",
            "stdout:my-pod",
            "stdout:my-pod",
            "stdout:nameserver 10.43.0.10",
            "stdout:1",
            "stdout:1",
            "stdout:/dev/shm/.",
            "stdout:0022",
        ]),
    )
}

async fn shared_process_namespace(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut sandbox = f.sandbox_spec();
    sandbox.share_process_namespace = true;
    let sandbox = runtime.run_sandbox(&sandbox).await?;
    let first = launch(&runtime, &sandbox.id, &f.spec("first", "sleep 1000 & sleep 2000")).await?;
    let second =
        launch(&runtime, &sandbox.id, &f.spec("second", "ps | grep -c 'sleep [12]000'; echo x > /dev/shm/x"))
            .await?;
    expect(wait_end(&runtime, &second).await?.code, 0)?;
    expect(f.log("second"), lines(&["stdout:2"]))?;
    runtime.stop(&first, std::time::Duration::ZERO).await?;
    expect(wait_end(&runtime, &first).await?.code, 137)?;
    runtime.remove(&first).await?;
    // The other process of the first container died with it.
    let third =
        launch(&runtime, &sandbox.id, &f.spec("third", "ps | grep -c 'sleep [12]000'; cat /dev/shm/x"))
            .await?;
    wait_end(&runtime, &third).await?;
    expect(f.log("third"), lines(&["stdout:0", "stdout:x"]))?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn user_and_groups(f: Arc<Fixture>) -> Result<(), Failed> {
    let script = "id -u; id -g; id -G; echo via > /dev/stdout; touch /root/x || echo denied";
    let mut spec = f.spec("a", script);
    spec.user = User { uid: Some(33), gid: None, supplementary_gids: vec![77] };
    let (_, log) = once(&f, &spec).await?;
    let out: Vec<String> = log.into_iter().filter(|l| l.starts_with("stdout")).collect();
    expect(out, lines(&["stdout:33", "stdout:34", "stdout:34 50 77", "stdout:via", "stdout:denied"]))
}

async fn capabilities(f: Arc<Fixture>) -> Result<(), Failed> {
    let script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status | tr '\\t' ' '";
    let script = script.replace("tr '\\t' ' '", "cat");
    let check = |name: &'static str, edit: fn(&mut k8s_runtime::ContainerSpec), want: [&'static str; 6]| {
        let (f, script) = (Arc::clone(&f), script.clone());
        async move {
            let mut spec = f.spec(name, &script);
            edit(&mut spec);
            let (_, log) = once(&f, &spec).await?;
            let got: Vec<String> =
                log.iter().filter_map(|l| l.rsplit('\t').next()).map(str::to_owned).collect();
            expect(got, lines(&want))
        }
    };
    let (none, default) = ("0000000000000000", "00000000a80425fb");
    check("root", |_| {}, [none, default, default, default, none, "0"]).await?;
    check(
        "user",
        |s| {
            s.user.uid = Some(1000);
            s.no_new_privileges = true;
        },
        [none, none, none, default, none, "1"],
    )
    .await?;
    check("dropped", |s| s.drop_capabilities = vec!["ALL".into()], [none, none, none, none, none, "0"]).await
}

async fn seccomp(f: Arc<Fixture>) -> Result<(), Failed> {
    let script =
        "grep Seccomp: /proc/self/status | grep -c 2; mount -t tmpfs x /tmp 2>&1 | grep -c -i 'permi'";
    let (_, log) = once(&f, &f.spec("a", script)).await?;
    expect(log, lines(&["stdout:1", "stdout:1"]))?;
    let mut spec =
        f.spec("b", "grep -c 'Seccomp:.*0' /proc/self/status; mount -t tmpfs x /tmp && echo mounted");
    spec.privileged = true;
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:1", "stdout:mounted"]))
}

async fn readonly_root(f: Arc<Fixture>) -> Result<(), Failed> {
    let mut spec =
        f.spec("a", "touch /x 2>/dev/null || echo refused; echo ok > /dev/shm/y && cat /dev/shm/y");
    spec.readonly_rootfs = true;
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:refused", "stdout:ok"]))
}

async fn masked_paths_and_devices(f: Arc<Fixture>) -> Result<(), Failed> {
    let script =
        "cat /proc/timer_list | wc -c; (echo 1 > /proc/sys/kernel/printk) 2>/dev/null || echo refused
        (echo 1 > /sys/kernel/uevent_seqnum) 2>/dev/null || echo refused
        echo gone > /dev/null && head -c 3 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c
        mknod /tmp/null c 1 3 && (echo x > /tmp/null) 2>/dev/null || echo refused
        mknod /dev/own c 1 3 && (echo x > /dev/own) 2>/dev/null || echo refused
        ls /dev/pts/ptmx /dev/fd/0";
    let (_, log) = once(&f, &f.spec("a", script)).await?;
    expect(
        log,
        lines(&[
            "stdout:0",
            "stdout:refused",
            "stdout:refused",
            "stdout:3",
            "stdout:4",
            "stdout:refused",
            "stdout:refused",
            "stdout:/dev/fd/0",
            "stdout:/dev/pts/ptmx",
        ]),
    )
}

async fn mounts(f: Arc<Fixture>) -> Result<(), Failed> {
    let host = f.dir.join("volume");
    std::fs::create_dir_all(host.join("sub"))?;
    std::fs::write(host.join("file"), "from the host\n")?;
    let mut spec = f.spec(
        "a",
        "cat /data/file /deep/er/single /etc/escape/file; echo x > /data/new; (echo x > /ro/new) 2>/dev/null || echo refused; ls /etc/escape | wc -l",
    );
    let mount = |from: &std::path::Path, to: &str, readonly: bool| Mount {
        host_path: from.to_owned(),
        container_path: to.into(),
        readonly,
        ..Mount::default()
    };
    spec.mounts = vec![
        mount(&host, "/data", false),
        mount(&host, "/ro", true),
        mount(&host.join("file"), "/deep/er/single", true),
        // A link to /etc inside the image: it must lead to the image's /etc, never the host's.
        mount(&host, "/outside/escape", true),
    ];
    let (_, log) = once(&f, &spec).await?;
    expect(
        log,
        lines(&[
            "stdout:from the host",
            "stdout:from the host",
            "stdout:from the host",
            "stdout:refused",
            "stdout:3",
        ]),
    )?;
    expect(std::fs::read_to_string(host.join("new"))?, "x\n".to_owned())?;
    expect(std::path::Path::new("/etc/escape").exists(), false)?;
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    spec.mounts = vec![mount(&f.dir.join("nothing"), "/x", false)];
    let error = runtime.create(&sandbox.id, &spec).await.err().map(|e| e.to_string()).unwrap_or_default();
    runtime.remove_sandbox(&sandbox.id).await?;
    expect(error.contains("nothing") && error.contains("No such file"), true)
}

async fn memory_limit(f: Arc<Fixture>) -> Result<(), Failed> {
    let mut spec = f.spec("a", "exec dd if=/dev/zero of=/dev/shm/x bs=1M count=60");
    spec.resources = Resources {
        memory_bytes: Some(24 << 20),
        pids: Some(50),
        cpu_shares: Some(100),
        cpu_quota_us: Some(50_000),
        ..Resources::default()
    };
    let (ended, _) = once(&f, &spec).await?;
    expect(ended, Ended { code: 137, oom: true })
}

async fn working_dir_is_made(f: Arc<Fixture>) -> Result<(), Failed> {
    let mut spec = f.spec("a", "pwd");
    spec.working_dir = Some("/not/there/yet".into());
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:/not/there/yet"]))
}

async fn sysctls(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut sandbox = f.sandbox_spec();
    sandbox.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    let sandbox = runtime.run_sandbox(&sandbox).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"))
        .await?;
    wait_end(&runtime, &id).await?;
    runtime.remove_sandbox(&sandbox.id).await?;
    expect(f.log("a"), lines(&["stdout:0"]))?;
    let mut bad = f.sandbox_spec();
    bad.sysctls.insert("net.nothing".into(), "1".into());
    let error = runtime.run_sandbox(&bad).await.err().map(|e| e.to_string()).unwrap_or_default();
    expect(error.contains("net.nothing"), true)?;
    expect(runtime.list().await?.len(), 0)
}

/// The values stay what they are: nothing is written.
async fn sysctls_of_the_host_are_refused(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let swappiness = std::fs::read_to_string("/proc/sys/vm/swappiness")?;
    for (name, host_network) in [("vm.swappiness", false), ("net.ipv4.ip_forward", true)] {
        let mut spec = f.sandbox_spec();
        spec.host_network = host_network;
        // The present value, should the check be missing.
        let value = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")))?;
        spec.sysctls.insert(name.into(), value.trim().into());
        let refused = runtime.run_sandbox(&spec).await.err().map(|e| e.to_string()).unwrap_or_default();
        let want = format!("sysctl {name:?} is not in a separate kernel namespace");
        if !refused.ends_with(&want) {
            return Err(format!("{name}: {refused:?}").into());
        }
    }
    expect(std::fs::read_to_string("/proc/sys/vm/swappiness")?, swappiness)
}

async fn devices_are_restricted_even_with_sys_admin(f: Arc<Fixture>) -> Result<(), Failed> {
    // fuse, tun, loop-control, kernel memory, a loop device.
    let script = "mount -t tmpfs t /tmp && cd /tmp && \
        for d in 'c 10 229' 'c 10 200' 'c 10 237' 'c 1 2' 'b 7 0'; do mknod d $d && (: <d); rm d; done; \
        mknod null c 1 3 && echo gone >null && mknod zero c 1 5 && head -c 1 zero | wc -c; echo x >/dev/null && echo fine";
    let mut spec = f.spec("a", script);
    spec.add_capabilities = vec!["SYS_ADMIN".into()];
    let (_, log) = once(&f, &spec).await?;
    let refused = log.iter().filter(|l| l.ends_with("Operation not permitted")).count();
    if refused != 5 || !log.contains(&"stdout:1".to_owned()) || !log.contains(&"stdout:fine".to_owned()) {
        return Err(format!("{log:?}").into());
    }
    // A privileged container may open whatever the machine lets us open.
    let open = |path: &str| std::fs::File::open(path).map(drop).map_err(|e| e.kind());
    if open("/dev/fuse").is_ok() {
        let mut spec = f.spec("b", "cd /tmp && mknod d c 10 229 && (: <d) && echo open");
        spec.privileged = true;
        let (_, log) = once(&f, &spec).await?;
        expect(log, lines(&["stdout:open"]))?;
    }
    Ok(())
}

/// A container with SYS_ADMIN and without a seccomp filter mounts the hierarchy of its device rules and
/// writes to it.
async fn a_mounted_devices_hierarchy_lifts_no_rule(f: Arc<Fixture>) -> Result<(), Failed> {
    // On a machine with version 2 alone the mount fails, and the rest has to hold all the same.
    let script = "exec 2>&1; busybox mkdir /tmp/h /tmp/d; mount -t cgroup -o devices h /tmp/h && echo mounted
        own=/tmp/h$(while IFS=: read n c p; do [ \"$c\" = devices ] && echo $p; done </proc/self/cgroup)
        for rule in a 'b *:* rwm' 'c *:* rwm' 'c 10:229 rwm' 'b 7:0 rwm'; do echo $rule >$own/devices.allow; done
        echo $$ >/tmp/h/cgroup.procs; for rule in a 'c *:* rwm'; do echo $rule >/tmp/h/devices.allow; done
        mount -o remount,rw,bind /sys/fs/cgroup/devices; echo a >/sys/fs/cgroup/devices/devices.allow
        mount -t tmpfs t /tmp/d && cd /tmp/d && echo there
        for d in 'c 10 229' 'c 1 11' 'b 7 0'; do mknod d $d && (: <d) && echo \"open $d\"; rm d; done
        mknod null c 1 3 && echo gone >null && echo fine";
    let mut spec = f.spec("a", script);
    spec.add_capabilities = vec!["SYS_ADMIN".into()];
    spec.seccomp_unconfined = true;
    let (_, log) = once(&f, &spec).await?;
    let has = |line: &str| log.iter().any(|l| l == &format!("stdout:{line}"));
    let version_1 = std::fs::read_to_string("/proc/self/cgroup")?.contains(":devices:");
    let opened = log.iter().any(|l| l.starts_with("stdout:open "));
    if opened || !has("there") || !has("fine") || has("mounted") != version_1 {
        return Err(format!("{log:?}").into());
    }
    Ok(())
}

/// The root of a hierarchy has a `release_agent`, a program that the kernel starts on the host.
async fn a_mounted_hierarchy_shows_only_the_containers_own_group(f: Arc<Fixture>) -> Result<(), Failed> {
    let script = "cd /tmp; while IFS=: read n c p; do
            [ \"$c\" ] && type=cgroup || type=cgroup2
            [ \"$c\" ] && options=\"-o $c\" || options=
            busybox mkdir $n && mount -t $type $options h $n && [ -e $n/cgroup.procs ] || echo $n no
            [ -e $n/release_agent ] && echo $n agent
            [ $p = / ] || echo $n $p
        done </proc/self/cgroup; echo all";
    let mut spec = f.spec("a", script);
    spec.add_capabilities = vec!["SYS_ADMIN".into()];
    spec.seccomp_unconfined = true;
    let (_, log) = once(&f, &spec).await?;
    let log: Vec<String> = log.into_iter().filter(|l| !l.starts_with("stderr:")).collect();
    expect(log, lines(&["stdout:all"]))
}

/// A container without SYS_ADMIN comes first, so that the pod's own group is restricted by then.
async fn a_privileged_container_opens_devices_in_a_restricted_pod(f: Arc<Fixture>) -> Result<(), Failed> {
    if std::fs::File::open("/dev/loop-control").is_err() && std::fs::File::open("/dev/fuse").is_err() {
        return Ok(());
    }
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let script = "exec 2>&1; cd /tmp; mknod d c 10 229; mknod e c 10 237; (: <d) || (: <e) && echo open; :";
    for (name, privileged) in [("a", false), ("b", true), ("c", false)] {
        let mut spec = f.spec(name, script);
        spec.privileged = privileged;
        let id = launch(&runtime, &sandbox.id, &spec).await?;
        wait_end(&runtime, &id).await?;
        let log = f.log(name);
        if log.contains(&"stdout:open".to_owned()) != privileged {
            return Err(format!("{name}: {log:?}").into());
        }
    }
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn what_enters_a_container_is_a_sealed_copy(f: Arc<Fixture>) -> Result<(), Failed> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 60")).await?;
    let ContainerState::Running { pid, .. } = runtime.status(&id).await?.state else {
        return Err("not running".into());
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap_or_default().trim().to_owned();
    let program = format!("/proc/{parent}/exe");
    let name = std::fs::read_link(&program)?;
    if !name.to_string_lossy().starts_with("/memfd:shopkube-shim") {
        return Err(format!("the shim runs {name:?}").into());
    }
    let shown = std::fs::read_to_string(format!("/proc/{parent}/comm"))?;
    expect(shown.trim(), "shopkube-shim")?;
    let line = std::fs::read(format!("/proc/{parent}/cmdline"))?;
    expect(line.starts_with(b"shopkube-shim\0"), true)?;
    let seals = SealFlag::from_bits_retain(fcntl(std::fs::File::open(&program)?, FcntlArg::F_GET_SEALS)?);
    let want =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    expect(seals.contains(want), true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

/// A volume on `/dev` with a link in the place of `null`: what it leads to is not mounted over a masked path,
/// writable.
async fn masks_do_not_use_the_containers_own_null(f: Arc<Fixture>) -> Result<(), Failed> {
    let volume = f.dir.join("dev");
    std::fs::create_dir(&volume)?;
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", volume.join("null"))?;
    let masked =
        ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug"];
    let masked: Vec<&str> = masked.into_iter().filter(|p| std::path::Path::new(p).exists()).collect();
    // Also the streams that the container does not have are not the link's.
    let mut spec = f.spec("a", &format!("cat {} | wc -c; cat | wc -c", masked.join(" ")));
    spec.mounts = vec![Mount { host_path: volume, container_path: "/dev".into(), ..Mount::default() }];
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:0", "stdout:0"]))
}

async fn limits_can_be_read_and_not_changed(f: Arc<Fixture>) -> Result<(), Failed> {
    let script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes 2>/dev/null; \
        for p in pids.max pids/pids.max cgroup.procs memory/cgroup.procs x memory/x; do \
        echo 1 >$p && echo written $p; done 2>/dev/null; ls -d /sys/fs/cgroup/..";
    let mut spec = f.spec("a", script);
    spec.resources = Resources { memory_bytes: Some(64 << 20), ..Resources::default() };
    let (_, log) = once(&f, &spec).await?;
    expect(log, lines(&["stdout:67108864", "stdout:/sys/fs/cgroup/.."]))
}

/// Imports an image of two layers; the second one removes a file of the first.
fn two_layers(f: &Fixture, name: &str) -> Result<String, Failed> {
    let dir = f.dir.join("two");
    std::fs::create_dir_all(dir.join("a/etc"))?;
    std::fs::create_dir_all(dir.join("b/etc"))?;
    std::fs::write(dir.join("a/etc/kept"), "lower")?;
    std::fs::write(dir.join("a/etc/changed"), "lower")?;
    std::fs::write(dir.join("a/etc/gone"), "lower")?;
    std::fs::write(dir.join("b/etc/changed"), "upper")?;
    std::fs::write(dir.join("b/etc/.wh.gone"), "")?;
    std::fs::copy("/usr/bin/busybox", dir.join("b/busybox"))?;
    std::os::unix::fs::symlink("/", dir.join("b/out"))?;
    let shell = |script: &str| -> Result<String, Failed> {
        let out = std::process::Command::new("sh").args(["-ec", script]).current_dir(&dir).output()?;
        if out.status.success() { Ok(String::from_utf8(out.stdout)?) } else { Err(format!("{out:?}").into()) }
    };
    let sums =
        shell("for l in a b; do tar -cf $l.tar -C $l .; done; sha256sum a.tar b.tar | cut -d ' ' -f 1")?;
    let ids: Vec<String> = sums.lines().map(|sum| format!("sha256:{sum}")).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["a.tar", "b.tar"]}]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string())?;
    shell("tar -cf image.tar manifest.json config.json a.tar b.tar")?;
    let imported = f.images.import_file(&dir.join("image.tar"))?;
    Ok(imported.first().ok_or("not imported")?.id.clone())
}

async fn images_are_mounted_read_only_and_without_programs(f: Arc<Fixture>) -> Result<(), Failed> {
    let image = two_layers(&f, "two:1")?;
    let mount = |image: &str, sub: &str| Mount {
        image: image.into(),
        sub_path: sub.into(),
        container_path: "/volume".into(),
        readonly: true,
        ..Mount::default()
    };
    let script = "cat /volume/etc/kept /volume/etc/changed; echo; ls /volume/etc; echo x > /volume/etc/new; \
        touch /volume/etc/kept; /volume/busybox true; echo $?";
    let mut spec = f.spec("a", script);
    spec.mounts = vec![mount(&image, "")];
    let (_, log) = once(&f, &spec).await?;
    let out: Vec<&String> = log.iter().filter(|line| line.starts_with("stdout:")).collect();
    let want = lines(&["stdout:lowerupper", "stdout:changed", "stdout:kept", "stdout:126"]);
    expect(out, want.iter().collect())?;
    let refused = log.iter().filter(|line| line.contains("Read-only file system")).count();
    expect(refused, 2)?;

    // A path in it, of several layers and of one; a file.
    let id = f.images.resolve(harness::IMAGE)?.id.clone();
    for (name, image, sub, command, want) in [
        ("b", &image, "etc", "ls /volume", vec!["stdout:changed", "stdout:kept"]),
        ("c", &image, "etc/changed", "cat /volume; echo", vec!["stdout:upper"]),
        ("d", &id, "etc", "cat /volume/group | head -n 1", vec!["stdout:root:x:0:"]),
    ] {
        let mut spec = f.spec(name, command);
        spec.mounts = vec![mount(image, sub)];
        let (_, log) = once(&f, &spec).await?;
        expect(log, lines(&want))?;
    }
    // A missing path, and one that leads out.
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    for sub in ["nowhere", "out/etc"] {
        let mut spec = f.spec("e", "true");
        spec.mounts = vec![mount(&image, sub)];
        let refused =
            runtime.create(&sandbox.id, &spec).await.err().map(|e| e.to_string()).unwrap_or_default();
        if !refused.contains("failed to mount image volume on \"/volume\"") {
            return Err(format!("{sub}: {refused:?}").into());
        }
    }
    let mut spec = f.spec("f", "sleep 100");
    spec.mounts = vec![mount(&image, "etc")];
    launch(&runtime, &sandbox.id, &spec).await?;
    let used = k8s_runtime::embedded::images_in_use(&f.config.root)?;
    expect(used.contains_key(&image), true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}
