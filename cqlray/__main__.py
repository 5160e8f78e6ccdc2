from cqlray.cli import main

raise SystemExit(main())
