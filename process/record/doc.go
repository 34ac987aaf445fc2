// Package record lets the kernel note who uses a socket, before a packet of that
// socket can reach a queue.
//
// Asking after the packet has arrived comes too late for a program that sends
// once and ends: process and socket are gone. So small BPF programs write down,
// in the system call that acts on the socket, who the caller is; another one,
// called by the rule just before the packet is queued, writes down which socket
// sends the flow. The reader needs one map lookup per new flow.
//
// It owns the BPF programs, their maps and their links, and is the only package
// that imports cilium/ebpf. Programs are assembled at run time: no compiler, no
// object files. It must not know policies, queues, rulesets or what a process
// means to anybody; it reads no /proc but the list of mounts and how many
// threads there can be.
//
// # What is recorded
//
//   - owners, socket cookie to [Owner]: who made the socket, or connected,
//     bound or sent by it since. Cgroup hooks at sock_create, connect, sendmsg
//     (UDP without a connection) and post_bind. The hook at sock_release takes the
//     record out.
//   - flows, five-tuple and [User] to [Flow]: the socket that sent it, with a copy of its
//     owner as it was when that packet was sent. Written by the program for a
//     rule ([Recorder.FlowProgram]) and, with Config.Forward, by the tracepoint
//     netif_receive_skb for processes in other network namespaces: there a packet
//     has its socket still and its interface already, and a record is of both.
//   - running, pid to [Process]: the program that runs, by its file and not by the
//     name given to execve. Written at exec, and handed on at fork, and at no other
//     time: a process can change later what the kernel says that it runs
//     (PR_SET_MM_EXE_FILE). What has not executed a program since the recording
//     began has no record, and neither have its children. Exit takes it out.
//
// Nobody can push another's record out of these. There is room for as many processes
// as the kernel can have; of the room for sockets, a service or user (a control group
// of the second level) can fill a quarter, and what finds no room is counted and has
// no owner. A record that is taken out stays for a while in a map that forgets what
// was used longest ago (closed, past): for packets that are still under way, and for
// children of a process. So do requests for connections, which strangers make
// (requests), and flows: who sent a packet whose flow is forgotten, its socket tells.
//
// Changes are numbers that say when to look again: of a flow's record, of what a
// process runs, and of the sockets at a port ([Recorder.Changes]). Cgroup hooks at
// post_bind, connect and sock_release count the last, but for TCP.
//
// Sockets older than the recorder have no owner yet. [Recorder.Holders] lists which
// process holds which socket, by an iterator over the kernel's descriptors
// (task_file), in all network namespaces, and [Recorder.Seed] takes what follows.
//
// A socket that accept returns is made in the kernel by a SYN, with nobody
// calling. A sock_ops program gives it the owner of the listener
// ([HookAccept]); who will call accept is not known. With SYN cookies there is no
// request to write that on, and the socket has no owner until it is used.
//
// A tunnel puts a packet around another one, and the socket of the inner one stays
// with it. A record is made of a packet that its socket can have made: of its protocol
// and port, in its network namespace. Others are the kernel's ([Flow.Kernel]) or of
// nobody ([Flow.Doubtful]).
//
// Sockets that the kernel makes are not of who is in a system call at the time. Those
// of TCP are for a program, which acts by them; a later subflow of an MPTCP connection
// has the owner of the first. Of those of UDP [Recorder.FindTunnels] finds out, by an
// iterator, by which tunnels receive. The hook at sock_release is not called for them;
// at the tracepoint tcp_destroy_sock those of TCP go.
//
// # What is not recorded
//
//   - A process that got an open, connected socket from another one and only
//     sends or receives: no hook is called. The owner is who connected.
//   - Raw and ping sockets that were passed on: the owner is who opened them.
//   - Non-first fragments, as they have no ports, and IPv6 packets with more
//     than 8 extension headers.
//   - TIME_WAIT and reset packets that the kernel sends by a socket of its own
//     have cookie 0.
//   - Packets that are forwarded, unless Config.Forward is set and a socket of
//     this host sent them. The tuple and the interface are those that they came in
//     with: what comes in by a VLAN, a bond or a VRF has none.
//
// # How far a record can be trusted
//
// PID, UID, GID, cgroup and the inode of the program are read from the kernel's
// own structures while the process is in the system call. A [Process]'s path is
// put together by walking up the directory tree without the kernel's locks: who
// renames directories meanwhile can make a mixed one, so compare Inode and
// Device before a path is believed. Comm, Args and TTY are what the process
// says. Inode and Device are those of stat(2), of a file in a subvolume of btrfs
// too. Where a file system tells stat(2) something else (overlayfs over several
// disks), they are of no file that stat(2) shows. Where the two would not name one
// file (bcachefs; btrfs if its types are not known, as before its module is
// loaded), Device is 0.
//
// The offsets of kernel structures come from the kernel's BTF when the programs
// are loaded. Without BTF there are no process records, no start times, no
// owners of accepted sockets, no list of holders; [Recorder.Stats] says so.
//
// A record is written whole and can be replaced while somebody copies it: each
// carries its own key and a check at the end, and a copy that does not agree is
// taken again, in the kernel and here.
//
// # Needs
//
// CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (or CAP_SYS_ADMIN), cgroup version 2,
// and CONFIG_CGROUP_BPF. Tried on Linux 6.18; the helpers are there from 5.11 on.
// The hooks see the sockets of all network namespaces; ids are those of the
// initial pid and user namespace. The default maps take about 65 MB of kernel
// memory, and 1 kB for each process and 200 bytes for each open socket.
package record
