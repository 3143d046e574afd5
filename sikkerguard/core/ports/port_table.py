"""The services by IP protocol and port, each under the category in which its attackers are reported.

`SERVICES` has a tuple (protocol, category, name, ports) for each service, in the order of the table, in which names and
their ports stand one behind the other, separated by commas. Protocols are upper case as the kernel logs them, a port
stands at most once in a protocol, a name at most once in a protocol. A name without a port (its default belongs to
something commoner) can be given one with SIKKER_PORT_MAP.

Names come from the IANA Service Name and Transport Protocol Port Number Registry where the registered name is the
one that people use, and from common usage where it is not (`rdp` for ms-wbt-server, `smb` for microsoft-ds, `dns`
for domain, `mssql` for ms-sql-s). Where several services share a port, the one commonest on Linux servers has it.

The category answers one question: what does a first packet to this port, from an address that is already known as
an attacker, say about the sender? Nothing was answered and no payload was read, so it is the least of what such a
packet is sent for, and never what only a payload could show.

brute_force     The service asks for a password, or ought to: shells, desktops, mailboxes, shares, directories,
                databases, brokers, telephone exchanges. To look for a store left open (redis, mongodb, memcached)
                is to try the empty password first. A database's port is this and not sql_injection: injected SQL
                arrives through a web application.
web_exploit     It speaks HTTP or stands right behind what does (ajp, fastcgi). That holds for panels and for open
                APIs (docker, kubelet, elasticsearch) alike: before the request is read, a guess at a login can't be
                told from an exploit. winrm is HTTP too, but nothing but a remote shell's login.
iot_targeted    Only devices and industrial controllers are worth asking there. Telnet is among them, since those
                who still ask for it are the Mirai family and its like, in search of cameras and routers.
dns_abuse       DNS over any transport: open resolvers, zone transfers, tunnels.
spam            Port 25 takes mail from strangers without a login, so what is tried there is mail itself. Ports
                where mail is handed in with a password are brute_force.
ddos            UDP only, where a small question has a large answer. CISA's alert TA14-017A lists most of these; rdp,
                ard, slp, stun, plex and the discovery of Ubiquiti's devices and of DVRs were found later. The packet
                looks for a reflector or makes use of one, and then its source is the victim's address, forged: a
                reason to be slow to report what came over UDP. Where guessing or devices outweigh reflection, the
                service is under brute_force or iot_targeted instead (sip, ipmi, coap).
port_scan       All the rest, and every port that is not in the table: it was looked at, and no more is known. That
                includes proxies (the sender seeks an open proxy, which does not make it one) and VPNs that check
                keys rather than passwords.

Unused, since no port shows them: sql_injection, phishing, bad_bot, exploited_host, malware, open_proxy, spoofing,
fraud, other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    Service = tuple[str, str, str, tuple[int, ...]]

_TABLE: Final = """
TCP brute_force
    # Shells, desktops, files
    ftp 21, ftp-alt 2121, ftps 990, ssh 22, ssh-alt 222 2222 22222, rexec 512, rlogin 513, rsh 514,
    rdp 3389, rdp-alt 3388 3390 33389, vnc 5900 5901 5902 5903, vnc-http 5800 5801, winrm 5985 5986,
    x11 6000 6001 6002 6003 6004 6005, radmin 4899, pcanywhere 5631, teamviewer 5938,
    nomachine 4000, citrix-ica 1494 2598, pptp 1723, smb 445, netbios-ssn 139, afp 548, nfs 2049,
    rsync 873, iscsi 3260, svn 3690, cvs 2401, perforce 1666
    # Mail, directories, telephony, chat
    submission 587, smtps 465, pop3 110, pop3s 995, imap 143, imaps 993, sieve 4190, ldap 389,
    ldaps 636, ldap-gc 3268 3269, kerberos 88, kpasswd 464, tacacs 49, sip 5060, sips 5061,
    asterisk-ami 5038, xmpp 5222 5223, xmpp-server 5269
    # Databases, stores, brokers
    mysql 3306, mysqlx 33060, postgresql 5432, pgbouncer 6432, vertica 5433, cockroachdb 26257,
    mssql 1433 1434, oracle 1521 2483 2484, db2 523 50000, informix 9088, firebird 3050, hana 30015,
    sap-dispatcher 3200, redis 6379 6380, redis-sentinel 26379, memcached 11211,
    mongodb 27017 27018 27019, cassandra 9042 9160, rethinkdb 28015, neo4j-bolt 7687,
    zookeeper 2181, kafka 9092 9093, amqp 5672, amqps 5671, rabbitmq 25672, activemq 61616,
    stomp 61613, nats 4222, salt 4505 4506, rcon 27015, minecraft-rcon 25575
TCP web_exploit
    http 80, http-alt 81 82 591 8000 8001 8008 8080 8081 8082 8083 8090 9000, https 443,
    https-alt 4443 8443 9443 10443, ajp 8009, fastcgi
    # Containers, clusters, stores with an HTTP interface
    docker 2375 2376, docker-registry 5000, kubernetes 6443 16443, kubelet 10250 10255,
    etcd 2379 2380, consul 8500 8501, vault 8200, nomad 4646, elasticsearch 9200 9300, kibana 5601,
    solr 8983, splunk 8089, couchdb 5984 6984, couchbase 8091, clickhouse 8123, influxdb 8086,
    arangodb 8529, neo4j 7474, minio, yarn 8088, hdfs 9870 50070, spark 4040 6066
    # Panels and consoles
    grafana 3000, prometheus 9090, pushgateway 9091, netdata 19999, jenkins, gitlab, tomcat,
    phpmyadmin, portainer, weblogic 7001 7002, wildfly 9990, glassfish 4848,
    rabbitmq-management 15672, activemq-web 8161, webmin 10000, cpanel 2082 2083, whm 2086 2087,
    cpanel-webmail 2095 2096, plesk 8447 8880, proxmox 8006, cockpit, supervisord 9001, puppet 8140,
    wsus 8530 8531
    # What runs code for whoever asks
    jupyter 8888, selenium 4444, node-inspector 9229, ray 8265, ollama 11434, gradio 7860,
    comfyui 8188, ethereum-rpc 8545
TCP iot_targeted
    telnet 23, telnet-alt 2323, telnets 992, adb 5555, cwmp 7547 30005, upnp 1900 2869 52869,
    huawei-upnp 37215, winbox 8291, mikrotik-api 8728 8729, smart-install 4786, rtsp 554 8554 10554,
    dahua 37777, hikvision, dvrip 9527 9530 34567, jaws-dvr 60001, mqtt 1883, mqtts 8883,
    coap 5683 5684, lpd 515, ipp 631, jetdirect 9100, modbus 502, s7 102, dnp3 20000,
    ethernet-ip 44818, iec-104 2404, opc-ua 4840, niagara-fox 1911 4911, codesys 2455 11740,
    melsec 5007, pcworx 1962, ge-srtp 18245, red-lion 789, hart-ip 5094, crestron 41794,
    tank-gauge 10001
TCP dns_abuse
    dns 53, dns-over-tls 853
TCP spam
    smtp 25, smtp-alt 26 2525
TCP port_scan
    tcpmux 1, echo 7, discard 9, systat 11, daytime 13, qotd 17, chargen 19, time 37, wins 42,
    whois 43, gopher 70, finger 79, rpcbind 111, ident 113, nntp 119, nntps 563, msrpc 135 593,
    bgp 179, slp 427, vmware-auth 902, socks 1080, squid 3128, privoxy 8118, shadowsocks 8388,
    tor-socks 9050 9150, java-rmi 1099, jdwp 5005, openvpn 1194, h323 1720, msmq 1801, rtmp 1935,
    sccp 2000, docker-swarm 2377, sap-router 3299, sap-gateway 3300, stratum 3333, distcc 3632,
    epmd 4369, munin 4949, nrpe 5666, checkmk 6556,
    irc 194 6660 6661 6662 6663 6664 6665 6666 6667 6668 6669, ircs 6697, bittorrent 6881,
    bitcoin 8333, git 9418, zabbix 10050 10051, glusterfs 24007, minecraft 25565, ethereum 30303
UDP brute_force
    tacacs 49, kerberos 88, kpasswd 464, ipmi 623, radius 1645 1812, radius-acct 1646 1813,
    iax 4569, sip 5060, sips 5061
UDP web_exploit
    https 443
UDP iot_targeted
    knx 3671, moxa-nport 4800, hart-ip 5094, coap 5683 5684, fins 9600, lantronix 30718,
    profinet 34964, hikvision 37020, dahua 37778, crestron 41794, ethernet-ip 44818, bacnet 47808,
    netis 53413
UDP dns_abuse
    dns 53, dns-over-quic 853
UDP ddos
    echo 7, daytime 13, qotd 17, chargen 19, tftp 69, rpcbind 111, ntp 123, netbios-ns 137,
    snmp 161, xdmcp 177, ldap 389, slp 427, rip 520, mssql-browser 1434, ssdp 1900, ard 3283,
    rdp 3389, stun 3478, ws-discovery 3702, kad 4672, mdns 5353, llmnr 5355, bittorrent 6881,
    teamspeak 9987, ubiquiti 10001, memcached 11211, source-engine 27015, quake3 27960,
    plex 32410 32412 32413 32414, dvr-discovery 37810
UDP port_scan
    discard 9, time 37, dhcp 67 68, msrpc 135, netbios-dgm 138, snmp-trap 162, ipsec 500 4500,
    syslog 514, openvpn 1194, l2tp 1701, h323 1718 1719, hsrp 1985, nfs 2049, netflow 2055,
    gtp 2123 2152, mgcp 2427 2727, vxlan 4789, mndp 5678, sflow 6343, statsd 8125,
    minecraft-bedrock 19132, ethereum 30303, traceroute 33434, wireguard 51820
"""


def _services() -> Iterator[Service]:
    protocol = category = ""
    for line in _TABLE.split("\n"):
        if line[:1].isupper():
            protocol, category = line.split()
        elif not line.lstrip().startswith("#"):
            for name, *ports in filter(None, map(str.split, line.split(","))):
                yield protocol, category, name, tuple(map(int, ports))


SERVICES: Final = tuple(_services())
